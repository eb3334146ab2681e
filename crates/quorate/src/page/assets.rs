//! The page's style, script and picture. Their addresses change with their content, so that browsers
//! may keep them for ever.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// A file in the program.
pub struct Asset {
    /// Its path.
    pub path: &'static str,
    /// What is in it.
    pub text: &'static str,
    kind: &'static str,
}

/// The style.
pub static STYLE: Asset = Asset {
    path: "/page/style.css",
    text: concat!(include_str!("palette.css"), include_str!("style.css")),
    kind: "text/css; charset=utf-8",
};

/// The script.
pub static SCRIPT: Asset = Asset {
    path: "/page/script.js",
    text: include_str!("script.js"),
    kind: "text/javascript; charset=utf-8",
};

/// The picture in a browser's tab: three copies that agree.
pub static ICON: Asset = Asset {
    path: "/page/icon.svg",
    text: r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><g fill="none" stroke="#3b74c4" stroke-width="1.5"><path d="M8 4v3M8 7 4 11M8 7l4 4"/></g><g fill="#3b74c4"><circle cx="8" cy="3.2" r="2.2"/><circle cx="3.4" cy="12" r="2.2"/><circle cx="12.6" cy="12" r="2.2"/></g></svg>"##,
    kind: "image/svg+xml",
};

impl Asset {
    /// Its address, which tells its versions apart.
    pub fn address(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        format!("{}?{:x}", self.path, hasher.finish())
    }

    /// The answer to whoever asks for it.
    pub fn answer(&self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, self.kind),
            (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (headers, self.text).into_response()
    }
}
