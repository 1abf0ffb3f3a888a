//! Does a value fit a schema of the document? As much of JSON Schema as the document uses; anything else is a panic, so
//! that nothing in it is left unread.

use serde_json::Value;

pub fn document() -> Value {
    serde_json::from_str(super::OPENAPI).expect("the document is JSON")
}

/// Follows `$ref`, if it is one.
pub fn resolve<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(path) => document.pointer(path.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{path}")),
        None => value,
    }
}

/// Why it does not fit.
pub fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = resolve(document, schema);
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        let fits = match keyword.as_str() {
            "description"
            | "format"
            | "example"
            | "default"
            | "properties"
            | "required"
            | "additionalProperties" => true,
            "type" => match rule {
                Value::String(name) => is(name, value),
                Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap(), value)),
                other => panic!("{other}"),
            },
            "const" => rule == value,
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => !value.is_number() || wide(value) >= wide(rule),
            "maximum" => !value.is_number() || wide(value) <= wide(rule),
            "minLength" => {
                value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap())
            }
            "maxLength" => {
                value.as_str().is_none_or(|text| text.chars().count() as u64 <= rule.as_u64().unwrap())
            }
            "pattern" => value.as_str().is_none_or(|text| matches_pattern(rule.as_str().unwrap(), text)),
            "minItems" => value.as_array().is_none_or(|list| list.len() as u64 >= rule.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|list| list.len() as u64 <= rule.as_u64().unwrap()),
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| check(document, rule, item))?;
                true
            }
            "oneOf" => {
                let fits = |schema: &&Value| check(document, schema, value).is_ok();
                rule.as_array().unwrap().iter().filter(fits).count() == 1
            }
            other => panic!("the keyword {other} is not known here"),
        };
        if !fits {
            return Err(format!("{value} does not fit {keyword}: {rule}"));
        }
    }
    match value {
        Value::Object(_) => check_fields(document, schema, value),
        _ => Ok(()),
    }
}

fn check_fields(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let fields = value.as_object().unwrap();
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Err(format!("{value} lacks {name}"));
        }
    }
    let properties = schema.get("properties");
    for (name, field) in fields {
        match properties.and_then(|properties| properties.get(name)) {
            Some(property) => check(document, property, field)?,
            None if schema.get("additionalProperties") == Some(&Value::Bool(false)) => {
                return Err(format!("{name} is not a field of this"));
            }
            None => {}
        }
    }
    Ok(())
}

/// As many patterns as there are.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match pattern {
        "^[!-~]+$" => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()),
        "^[0-9]{1,9}-[0-9]{1,19}-[0-9]{1,9}$" => {
            let parts: Vec<&str> = text.split('-').collect();
            let decimal = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            let lengths = parts.iter().zip([9, 19, 9]);
            parts.len() == 3
                && lengths.into_iter().all(|(part, most)| (1..=most).contains(&part.len()) && decimal(part))
        }
        other => panic!("the pattern {other} is not known here"),
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("the type {other} is not known here"),
    }
}

/// The numbers here are of 64 bits, or small enough for a double.
fn wide(value: &Value) -> i128 {
    let whole = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
    whole.unwrap_or_else(|| value.as_f64().unwrap() as i128)
}
