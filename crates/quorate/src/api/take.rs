//! What requests carry, taken strictly: a field that is misspelt would otherwise do nothing, or with
//! `dry_run` far too much. Whoever is refused is told in JSON, as by every other answer.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use quorate_core::NodeId;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::{Error, Number, Value};

use super::Problem;

/// A body.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<Value>::from_request(request, state).await {
            Ok(Json(value)) => read(value).map(Body),
            Err(rejection) => Err(unreadable(&rejection)),
        }
    }
}

/// What a route takes, from JSON.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|e| {
        let text = format!("the body is not what this route takes: {e}");
        Problem(StatusCode::UNPROCESSABLE_ENTITY, text)
    })
}

fn unreadable(rejection: &JsonRejection) -> Problem {
    let text = match rejection {
        JsonRejection::MissingJsonContentType(_) => {
            "this route takes JSON: send `content-type: application/json`".to_owned()
        }
        other => other.body_text(),
    };
    Problem(rejection.status(), text)
}

/// A query.
pub(super) struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(Problem(rejection.status(), rejection.body_text())),
        }
    }
}

/// A node's name. An empty one is nobody's, although what nodes say to each other knows it.
pub(super) fn node<'de, D: Deserializer<'de>>(given: D) -> Result<NodeId, D::Error> {
    NodeId::new(&String::deserialize(given)?).map_err(D::Error::custom)
}

/// The same where none need be given.
pub(super) fn some_node<'de, D: Deserializer<'de>>(given: D) -> Result<Option<NodeId>, D::Error> {
    let name = Option::<String>::deserialize(given)?;
    name.map(|name| NodeId::new(&name)).transpose().map_err(D::Error::custom)
}

/// JSON as it is meant: an object by its names only, where serde would take a list in the order of
/// the fields as well; and `2.0` as the whole number that it is.
struct Strict(Value);

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Strict)))
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, Strict(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            Value::Number(number) => whole(&number).unwrap_or(number).deserialize_any(visitor),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Whole numbers up to here are exact in a double.
const EXACT: f64 = (1_u64 << 53) as f64;

fn whole(number: &Number) -> Option<Number> {
    let value = number.as_f64().filter(|_| number.is_f64())?;
    let exact = value.fract() == 0.0 && (0.0..=EXACT).contains(&value);
    exact.then(|| Number::from(value as u64))
}

#[cfg(test)]
mod tests {
    use quorate_core::document::Document;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Ask {
        #[serde(default, deserialize_with = "some_node")]
        node: Option<NodeId>,
        #[serde(default)]
        seconds: u64,
    }

    fn refusal<T: DeserializeOwned>(value: Value) -> String {
        let Err(problem) = read::<T>(value) else { panic!("it was taken") };
        assert_eq!(problem.0, StatusCode::UNPROCESSABLE_ENTITY);
        problem.1
    }

    #[test]
    fn a_misspelt_field_is_told_with_those_that_there_are() {
        let text = refusal::<Ask>(json!({ "second": 5 }));
        assert!(text.ends_with("unknown field `second`, expected `node` or `seconds`"), "{text}");
    }

    #[test]
    fn an_object_is_not_taken_from_a_list() {
        refusal::<Ask>(json!([null, 5]));
        let text = refusal::<Document>(json!({ "disk": [null, null] }));
        assert!(text.contains("disk: invalid type: sequence"), "{text}");
    }

    #[test]
    fn whole_numbers_may_have_a_point() {
        let ask = read::<Ask>(json!({ "node": "n1", "seconds": 5.0 }));
        let Ok(ask) = ask else { panic!("it was refused") };
        assert_eq!((ask.seconds, ask.node.unwrap().as_str()), (5, "n1"));
        for bad in [json!(5.5), json!(-1.0), json!(1e300), json!("5")] {
            refusal::<Ask>(json!({ "seconds": bad }));
        }
    }

    #[test]
    fn an_empty_name_is_nobodys() {
        let text = refusal::<Ask>(json!({ "node": "" }));
        assert!(text.contains("use 1 to 31 lower-case letters"), "{text}");
        assert!(read::<Ask>(json!({ "node": null })).is_ok());
    }

    #[test]
    fn a_document_is_read_as_it_is_written() {
        let text = r#"{"timing":"sync","sync_nodes":["n2"],"nodes":{"n2":{"role":"read",
            "contract":{"max_lag_ms":5000}}},"gateway":{"access":[{"action":"reject"}]}}"#;
        let Ok(document) = read::<Document>(serde_json::from_str(text).unwrap()) else {
            panic!("it was refused")
        };
        assert_eq!(document, serde_json::from_str(text).unwrap());
    }
}
