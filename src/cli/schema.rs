//! `hubrouter schema`: JSON Schemas of what goes in and comes out.

use std::borrow::Cow;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::output;
use crate::error::Result;
use crate::feedback::FeedbackLine;
use crate::files::to_json;
use crate::verify::VerifyReport;
use crate::{
    Constraint, Decision, Deployment, Explanation, ModelCard, Policy, Request, SessionKey,
};

/// Print the JSON Schema (2020-12) of a form
#[derive(Args)]
#[command(after_help = "Example:\n  hubrouter schema policy > policy.schema.json")]
pub(super) struct SchemaArgs {
    /// The form
    form: SchemaForm,
}

#[derive(Clone, Copy, ValueEnum)]
enum SchemaForm {
    /// A request
    Request,
    /// A decision: a line of route --json
    Decision,
    /// A line of route --json --explain
    Explanation,
    /// A policy file
    Policy,
    /// A line of a feedback log
    FeedbackLine,
    /// A model card: a line of a models.jsonl
    ModelCard,
    /// The report of verify --json
    Verify,
}

pub(super) fn run(args: &SchemaArgs) -> Result<ExitCode> {
    let read = SchemaSettings::draft2020_12();
    let written = SchemaSettings::draft2020_12().for_serialize();
    let schema = match args.form {
        SchemaForm::Request => root::<Request>(read),
        SchemaForm::Decision => root::<Decision>(written),
        SchemaForm::Explanation => root::<Explanation>(written),
        SchemaForm::Policy => root::<Policy>(read),
        SchemaForm::FeedbackLine => root::<FeedbackLine>(written),
        SchemaForm::ModelCard => root::<ModelCard>(read),
        SchemaForm::Verify => root::<VerifyReport>(written),
    };
    output::raw(&to_json(&schema)?)?;
    Ok(ExitCode::SUCCESS)
}

fn root<T: JsonSchema>(settings: SchemaSettings) -> Value {
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut value = Value::from(schema);
    plain(&mut value);
    value
}

/// Makes plain text of descriptions: without links and examples in Rust.
fn plain(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(text) if key == "description" => {
                        let words = text.split("\n\n```").next().unwrap_or_default();
                        *text = words
                            .replace("[`crate::", "`")
                            .replace("[`", "`")
                            .replace("`]", "`");
                    }
                    value => plain(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(plain),
        _ => {}
    }
}

impl JsonSchema for Constraint {
    fn schema_name() -> Cow<'static, str> {
        "Constraint".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let inner = generator.subschema_for::<Self>();
        let list = json_schema!({"type": "array", "items": inner.clone()});
        let scalar = json_schema!({"type": ["number", "string", "boolean"]});
        json_schema!({
            "description": "A condition on a model's attributes: its text, such as \
                `context_length >= 32768 and licence in [mit]`, or an object.",
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"all": list.clone()}, "required": ["all"],
                 "additionalProperties": false},
                {"type": "object", "properties": {"any": list}, "required": ["any"],
                 "additionalProperties": false},
                {"type": "object", "properties": {"not": inner}, "required": ["not"],
                 "additionalProperties": false},
                {"type": "object", "properties": {
                    "attribute": {"type": "string"},
                    "op": {"enum": ["exists", "=", "==", "!=", "<", "<=", ">", ">=", "in", "has",
                        "matches"]},
                    "value": {"anyOf": [scalar.clone(), {"type": "array", "items": scalar}]}},
                 "required": ["attribute", "op"], "additionalProperties": false}
            ]
        })
    }
}

impl JsonSchema for Deployment {
    fn schema_name() -> Cow<'static, str> {
        "Deployment".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let card = generator.subschema_for::<ModelCard>();
        json_schema!({
            "description": "A name that a gateway serves, and the model behind it; a text is a \
                deployment of that name, whose model has the same name.",
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {
                    "name": {"type": "string", "description": "The gateway's name."},
                    "model": {"type": "string",
                        "description": "The model's name or alias in the hub."},
                    "attributes": {"type": "object", "description": "Attributes of this \
                        deployment; null takes one of the model away."},
                    "card": card},
                 "additionalProperties": false}
            ]
        })
    }
}

impl JsonSchema for SessionKey {
    fn schema_name() -> Cow<'static, str> {
        "SessionKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The conversation that a request belongs to: its id, or an object.",
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {
                    "tenant": {"type": "string"}, "id": {"type": "string"}},
                 "required": ["id"]}
            ]
        })
    }
}
