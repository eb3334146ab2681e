//! Sentences set in a terminal.

/// Columns of the text.
pub const WIDTH: usize = 96;

/// A heading with its sentences under it. Nothing without sentences.
pub fn section(heading: &str, sentences: &[String]) -> String {
    if sentences.is_empty() {
        return String::new();
    }
    let body: String = sentences.iter().map(|s| bullet(s)).collect();
    format!("\n{heading}\n{body}")
}

/// A sentence, broken into lines.
pub fn bullet(sentence: &str) -> String {
    let mut out = String::new();
    let mut line = "  -".to_owned();
    for word in sentence.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            out += &line;
            out.push('\n');
            line = "   ".to_owned();
        }
        line.push(' ');
        line += word;
    }
    out + &line + "\n"
}

/// The first letter as a capital.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |c| c.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_longer_than_the_width() {
        let text = section("Heading", &["word ".repeat(100), "short".to_owned()]);
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches("word").count(), 100);
        assert_eq!(section("Heading", &[]), "");
    }
}
