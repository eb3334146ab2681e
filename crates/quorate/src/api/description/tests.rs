use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use quorate_agent::alerts::Stage;
use quorate_agent::carry::Carriers;
use quorate_agent::slots::SlotsReport;
use quorate_agent::validation::Ran;
use quorate_agent::view::ClusterStatus;
use quorate_core::access::{self, AccessRule, TlsNeed};
use quorate_core::alert::{self, Severity, Silence};
use quorate_core::authority::{Authority, Phase, Reign, Switchover};
use quorate_core::candidates::Candidate;
use quorate_core::contract::{self, Contract, ContractSpec};
use quorate_core::document::{Document, Level, NodeSpec, Timing};
use quorate_core::drill::{self, Drill, Measures, Outcome, Record, Running, Targets};
use quorate_core::gateway::{
    Consistency, Gateway, PoolMode, PoolRule, PoolSpec, ReadFrom, SynchronousCommit, Tls,
};
use quorate_core::invariant::{Breach, Invariant};
use quorate_core::lag::{Cause, CauseKind, Percentiles, Point};
use quorate_core::report::{Position, Report as LogEnd};
use quorate_core::role::Role;
use quorate_core::slots as slot;
use quorate_core::state::{About, DocumentVersion, Event, NodeKind};
use quorate_core::status::{
    Doing, Hearing, Lag, NodeStatus, Replay, ServerStatus, StandbyLink, Surrender, SurrenderReason,
    Vitals, WriterStatus,
};
use quorate_core::validation::{Finding, Validated, ValidationSpec, judge};
use quorate_core::{Because, Rule, Term};
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Value, json};

use super::OPENAPI;
use crate::api::{alerts, drills, slots, take, validation};
use crate::drill::conduct::Room;
use crate::drill::faults::Fault;
use crate::drill::plan::Plan;
use crate::drill::{Column, Line, Progress, Report};
use crate::fixture::node;
use crate::page::fixture;
use crate::review::{Item, Verdict};

fn description() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

fn words(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
}

/// Routes by path, with their methods.
type Routes = BTreeMap<String, BTreeSet<String>>;

/// The routes that a source adds to the API: `.route("/api/…", get(…).post(…))`.
fn routes_of(source: &str, routes: &mut Routes) {
    let code = source.split("#[cfg(test)]").next().unwrap();
    for rest in code.split(".route(").skip(1) {
        let Some((path, rest)) =
            rest.trim_start().strip_prefix('"').and_then(|r| r.split_once('"'))
        else {
            continue;
        };
        if !path.starts_with("/api/") && path != "/metrics" {
            continue;
        }
        let mut depth = 1;
        let end = rest.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        let methods = rest[..end.unwrap()].split(|c: char| !c.is_alphanumeric());
        let methods = methods.filter(|w| ["get", "post", "put", "patch", "delete"].contains(w));
        routes.entry(path.to_owned()).or_default().extend(methods.map(str::to_owned));
    }
}

fn routes_below(dir: &Path, routes: &mut Routes) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            routes_below(&path, routes);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            routes_of(&fs::read_to_string(path).unwrap(), routes);
        }
    }
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let mut there = Routes::new();
    routes_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut there);
    let paths = description()["paths"].take();
    let described: Routes =
        paths.as_object().unwrap().iter().map(|(path, item)| (path.clone(), keys(item))).collect();
    let list = |routes: &Routes| -> BTreeSet<String> {
        let each = |(path, methods): (&String, &BTreeSet<String>)| {
            methods.iter().map(|method| format!("{method} {path}")).collect::<Vec<_>>()
        };
        routes.iter().flat_map(each).collect()
    };
    let (described, there) = (list(&described), list(&there));
    let only = |one: &BTreeSet<String>, other| one.difference(other).cloned().collect::<Vec<_>>();
    assert_eq!(only(&there, &described), Vec::<String>::new(), "openapi.json lacks these");
    assert_eq!(only(&described, &there), Vec::<String>::new(), "only openapi.json has these");
}

#[test]
fn routes_are_found_in_sources() {
    let source = "Router::new()\n.route(\"/api/a\", get(look).post(act))\n.route(\n\"/api/b\",\n\
                  get(async || (1, \"x\")),\n).route(\"/page\", get(x))\n#[cfg(test)]\n\
                  .route(\"/api/c\", get(x))";
    let mut routes = Routes::new();
    routes_of(source, &mut routes);
    let set = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<BTreeSet<_>>();
    let expected = [("/api/a", set(&["get", "post"])), ("/api/b", set(&["get"]))];
    assert_eq!(routes, expected.map(|(path, methods)| (path.to_owned(), methods)).into());
}

#[test]
fn whatever_acts_asks_for_the_token_and_whatever_looks_does_not() {
    let description = description();
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut ids = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(ids.insert(operation["operationId"].to_string()), "{path}: its id is taken");
            let guarded = operation.get("security").is_some();
            assert_eq!(guarded, method == "post", "{method} {path}: what acts is sent with POST");
            assert_eq!(guarded, operation["responses"].get("401").is_some(), "{path}");
        }
    }
}

#[test]
fn what_is_referred_to_is_there() {
    fn look(value: &Value, description: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref") {
                    let pointer = to.strip_prefix('#').unwrap();
                    assert!(description.pointer(pointer).is_some(), "there is no {to}");
                }
                fields.values().for_each(|v| look(v, description));
            }
            Value::Array(items) => items.iter().for_each(|v| look(v, description)),
            _ => {}
        }
    }
    let description = description();
    look(&description, &description);
}

/// Asks a type what it would read, and gives it nothing.
struct Spy<'a>(&'a mut BTreeSet<String>);

impl<'de> Deserializer<'de> for Spy<'_> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("nothing"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.extend(fields.iter().map(|f| (*f).to_owned()));
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.extend(variants.iter().map(|v| (*v).to_owned()));
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// The fields of a struct, the words of an enumeration.
fn names<T: DeserializeOwned>() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    assert!(T::deserialize(Spy(&mut found)).is_err());
    assert!(!found.is_empty());
    found
}

/// Where a shape stands in the description (a name, or a property of one), and its names.
type Shape = (&'static str, BTreeSet<String>);

fn shapes_of_the_cluster() -> Vec<Shape> {
    vec![
        ("Because", names::<Because>()),
        ("Role", names::<Role>()),
        ("Action", names::<contract::Action>()),
        ("Severity", names::<Severity>()),
        ("ClusterStatus", names::<ClusterStatus>()),
        ("Phase", names::<Phase>()),
        ("Authority", names::<Authority>()),
        ("CommitRule", names::<Rule>()),
        ("Reign", names::<Reign>()),
        ("Position", names::<Position>()),
        ("Switchover", names::<Switchover>()),
        ("Candidate", names::<Candidate>()),
        ("Breach", names::<Breach>()),
        ("Invariant", names::<Invariant>()),
        ("NodeKind", names::<NodeKind>()),
        ("Contract", names::<Contract>()),
        ("Lag", names::<Lag>()),
        ("Cause", names::<Cause>()),
        ("Cause/kind", names::<CauseKind>()),
        ("Percentiles", names::<Percentiles>()),
        ("LagPoint", names::<Point>()),
        ("Doing", names::<Doing>()),
        ("NodeStatus", names::<NodeStatus>()),
        ("Report", names::<LogEnd>()),
        ("Surrender", names::<Surrender>()),
        ("Surrender/reason", names::<SurrenderReason>()),
        ("Server", names::<ServerStatus>()),
        ("Replay", names::<Replay>()),
        ("Writer", names::<WriterStatus>()),
        ("StandbyLink", names::<StandbyLink>()),
        ("Hearing", names::<Hearing>()),
        ("Vitals", names::<Vitals>()),
        ("Event", names::<Event>()),
        ("Event/about", names::<About>()),
        ("ReviewItem", names::<Item>()),
        ("ReviewItem/verdict", names::<Verdict>()),
        ("AlertRule", names::<alert::Rule>()),
        ("Alert/stage", names::<Stage>()),
        ("Silence", names::<Silence>()),
        ("DocumentVersion", names::<DocumentVersion>()),
    ]
}

fn shapes_of_slots_and_drills() -> Vec<Shape> {
    vec![
        ("SlotsReport", names::<SlotsReport>()),
        ("SlotCarriers", names::<Carriers>()),
        ("SlotCarried", names::<slot::Carried>()),
        ("SlotCarried/stage", names::<slot::CarryStage>()),
        ("SlotOrigin", names::<slot::Origin>()),
        ("SlotStanding", names::<slot::SlotStanding>()),
        ("Slot", names::<slot::Slot>()),
        ("Slot/kind", names::<slot::Kind>()),
        ("Slot/kept", names::<slot::Kept>()),
        ("SlotLevel", names::<slot::Level>()),
        ("SlotNext", names::<slot::Next>()),
        ("SlotsWord", names::<slot::SlotsWord>()),
        ("SlotTrouble", names::<slot::Trouble>()),
        ("SlotRecord", names::<slot::SlotRecord>()),
        ("SlotRecord/gap", names::<slot::Gap>()),
        ("SlotRecord/gap/cause", names::<slot::GapCause>()),
        ("DiskStanding", names::<slot::DiskStanding>()),
        ("DiskStanding/disk", names::<slot::Disk>()),
        ("DiskStanding/level", names::<slot::DiskLevel>()),
        ("Drill", names::<Drill>()),
        ("DrillPlan", names::<Plan>()),
        ("DrillRunning", names::<Running>()),
        ("DrillRecord", names::<Record>()),
        ("DrillRecord/outcome", names::<Outcome>()),
        ("DrillRecord/checks/0", names::<drill::Check>()),
        ("DrillMeasures", names::<Measures>()),
        ("DrillLine", names::<Line>()),
        ("DrillProgress", names::<Progress>()),
        ("DrillReport", names::<Report>()),
        ("DrillReport/rate/0", names::<Column>()),
        ("FaultRequest/fault", names::<Fault>()),
    ]
}

fn shapes_of_the_document() -> Vec<Shape> {
    vec![
        ("Document", names::<Document>()),
        ("Document/timing", names::<Timing>()),
        ("Document/level", names::<Level>()),
        ("Targets", names::<Targets>()),
        ("NodeSpec", names::<NodeSpec>()),
        ("ContractSpec", names::<ContractSpec>()),
        ("SlotSpec", names::<slot::SlotSpec>()),
        ("SlotSpec/drop", names::<slot::DropPolicy>()),
        ("DiskSpec", names::<slot::DiskSpec>()),
        ("ValidationSpec", names::<ValidationSpec>()),
        ("Gateway", names::<Gateway>()),
        ("Gateway/tls", names::<Tls>()),
        ("Gateway/synchronous_commit_floor", names::<SynchronousCommit>()),
        ("Consistency", names::<Consistency>()),
        ("ReadFrom", names::<ReadFrom>()),
        ("Pool", names::<PoolSpec>()),
        ("Pool/mode", names::<PoolMode>()),
        ("PoolRule", names::<PoolRule>()),
        ("AccessRule", names::<AccessRule>()),
        ("AccessRule/tls", names::<TlsNeed>()),
        ("AccessRule/action", names::<access::Action>()),
    ]
}

/// Shapes that have no struct of their own to be compared with: made by hand where they are answered,
/// or flattened, which [`fits`] looks at; or no struct at all.
const BY_HAND: [&str; 12] = [
    "Alert",
    "AlertRuleDefinition",
    "Duration",
    "Error",
    "Lsn",
    "Member",
    "NodeName",
    "Policy",
    "Term",
    "Timeline",
    "Validated",
    "WallMillis",
];

fn shape<'a>(description: &'a Value, place: &str) -> &'a Value {
    let mut words = place.split('/');
    let start = &description["components"]["schemas"][words.next().unwrap()];
    words.fold(start, |shape, word| match word {
        "0" => &shape["items"],
        property => &shape["properties"][property],
    })
}

#[test]
fn shapes_have_the_names_of_their_types() {
    let description = description();
    let mut shapes = shapes_of_the_cluster();
    shapes.extend(shapes_of_slots_and_drills());
    shapes.extend(shapes_of_the_document());
    for (place, names) in &shapes {
        let shape = shape(&description, place);
        let described = match shape.get("properties") {
            Some(properties) => keys(properties),
            None => words(&shape["enum"]),
        };
        assert_eq!(&described, names, "{place}");
    }
    let compared: BTreeSet<&str> = shapes.iter().map(|(place, _)| *place).collect();
    for name in keys(&description["components"]["schemas"]) {
        // Bodies of requests are compared where they are read.
        let known = compared.contains(name.as_str())
            || BY_HAND.contains(&name.as_str())
            || name.ends_with("Request");
        assert!(known, "{name} is compared with no type: add it above");
    }
}

/// Compares what is said of a route's body with what the route reads.
fn takes<T: DeserializeOwned>(description: &Value, path: &str) -> String {
    let body = &description["paths"][path]["post"]["requestBody"]["content"]["application/json"];
    let name = body["schema"]["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
    let schema = &description["components"]["schemas"][name];
    assert_eq!(keys(&schema["properties"]), names::<T>(), "{path}");
    assert_eq!(schema["additionalProperties"], false, "{path}");
    let example = &body["example"];
    assert_eq!(fits(description, schema, example, "example"), Vec::<String>::new(), "{path}");
    let read = |value: Value| take::read::<T>(value).is_ok();
    assert!(read(example.clone()), "{path}: its example is refused");
    let required = words(&schema["required"]);
    for field in keys(&schema["properties"]) {
        let mut less = example.clone();
        less.as_object_mut().unwrap().remove(&field);
        assert_eq!(read(less), !required.contains(&field), "{path} without {field}");
    }
    let mut more = example.clone();
    more["misspelt"] = json!(1);
    assert!(!read(more), "{path} takes what is not described");
    path.to_owned()
}

#[test]
fn routes_read_the_bodies_that_are_described() {
    use crate::api::documents::SetDocument;
    use crate::api::{FailoverAsk, RebuildAsk, RemoveAsk, RestartAsk, SwitchoverAsk, TokenAsk};
    let d = description();
    let compared: BTreeSet<String> = [
        takes::<SetDocument>(&d, "/api/config"),
        takes::<TokenAsk>(&d, "/api/token"),
        takes::<SwitchoverAsk>(&d, "/api/switchover"),
        takes::<FailoverAsk>(&d, "/api/failover"),
        takes::<RestartAsk>(&d, "/api/restart"),
        takes::<RebuildAsk>(&d, "/api/rebuild"),
        takes::<RemoveAsk>(&d, "/api/remove"),
        takes::<alerts::SilenceAsk>(&d, "/api/alerts/silence"),
        takes::<alerts::UnsilenceAsk>(&d, "/api/alerts/unsilence"),
        takes::<slots::SlotAsk>(&d, "/api/slots/drop"),
        takes::<slots::SlotAsk>(&d, "/api/slots/ack"),
        takes::<validation::ValidateAsk>(&d, "/api/validate"),
        takes::<drills::DrillAsk>(&d, "/api/drill"),
        takes::<drills::PlanAsk>(&d, "/api/drill/plan"),
        takes::<drills::Whose>(&d, "/api/drill/progress"),
        takes::<drills::Whose>(&d, "/api/drill/abort"),
        takes::<drills::FaultAsk>(&d, "/api/drill/fault"),
        takes::<Room>(&d, "/api/drill/stage"),
    ]
    .into();
    let paths = d["paths"].as_object().unwrap();
    let with_body = paths.iter().filter(|(_, item)| item["post"].get("requestBody").is_some());
    assert_eq!(compared, with_body.map(|(path, _)| path.clone()).collect());
}

#[test]
fn routes_read_the_queries_that_are_described() {
    let d = description();
    let query = |path: &str| {
        let parameters = d["paths"][path]["get"]["parameters"].as_array().unwrap();
        parameters.iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names::<alerts::LagAsk>(), query("/api/lag"));
    assert_eq!(names::<slots::Whose>(), query("/api/slots"));
}

/// What a value has that its description does not allow, or does not mention.
fn fits(description: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(to) = schema["$ref"].as_str() {
        let named = description.pointer(to.trim_start_matches('#')).unwrap();
        return fits(description, named, value, at);
    }
    for any in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[any].as_array() {
            let tried = choices.iter().map(|c| fits(description, c, value, at));
            return tried.min_by_key(Vec::len).unwrap();
        }
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if schema["type"] != kind && !words(&schema["type"]).contains(kind) {
        return vec![format!("{at} is of type {kind}, not {}", schema["type"])];
    }
    match value {
        Value::Array(items) => {
            let each = items.iter().enumerate();
            let schema_of = |i| schema["prefixItems"].get(i).unwrap_or(&schema["items"]);
            each.flat_map(|(i, v)| fits(description, schema_of(i), v, &format!("{at}[{i}]")))
                .collect()
        }
        Value::Object(fields) => {
            let lacking =
                words(&schema["required"]).into_iter().filter(|f| !fields.contains_key(f));
            let mut problems: Vec<String> =
                lacking.map(|field| format!("{at}.{field} is missing")).collect();
            for (field, value) in fields {
                let at = format!("{at}.{field}");
                let more = schema.get("additionalProperties").filter(|m| m.is_object());
                match schema["properties"].get(field).or(more) {
                    Some(schema) => problems.extend(fits(description, schema, value, &at)),
                    None => problems.push(format!("{at} is not described")),
                }
            }
            problems
        }
        scalar => match schema["enum"].as_array().is_some_and(|e| !e.contains(scalar)) {
            true => vec![format!("{at} may not be {scalar}")],
            false => Vec::new(),
        },
    }
}

#[test]
fn what_nodes_say_is_as_described() {
    let d = description();
    let answer = |method: &str, path: &str| {
        let answer = &d["paths"][path][method]["responses"]["200"]["content"];
        answer["application/json"]["schema"].clone()
    };
    let check = |schema: &Value, value: Value| {
        assert_eq!(fits(&d, schema, &value, "it"), Vec::<String>::new());
    };
    for picture in [fixture::picture(), fixture::large(8), fixture::troubled()] {
        let (alerts, silences) = (json!(picture.status.alerts), json!([]));
        check(&answer("get", "/api/alerts"), json!({ "alerts": alerts, "silences": silences }));
        check(&answer("get", "/api/status"), json!(picture.status));
        check(&answer("get", "/api/events"), json!(picture.events));
        check(&answer("get", "/api/review"), json!(picture.review));
        check(&answer("get", "/api/slots"), json!(picture.slots));
        let drills = json!({ "under_way": picture.running, "past": picture.drills });
        check(&answer("get", "/api/drills"), drills);
    }
    let version = DocumentVersion { version: 1, at: 2, document: Document::default() };
    check(&answer("get", "/api/config"), json!([version]));
    check(&answer("get", "/api/alerts/rules"), alerts::definitions());
    let judged = judge(&ValidationSpec::default(), &Finding::NoRow);
    let ran = Validated { term: Term(4), node: node("n2"), at: 1, took_ms: 3, judged };
    let ran = Ran { name: "orders".to_owned(), ran };
    check(&answer("post", "/api/validate"), json!({ "node": "n2", "ran": [ran] }));
}
