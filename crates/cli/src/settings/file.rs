//! The file: YAML, flattened to `server.auth.enabled` and the like.

use std::collections::BTreeMap;

use serde_json::Value;

/// Texts by their keys. A list is told as words between commas.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut flat = BTreeMap::new();
    if text.trim().is_empty() {
        return Ok(flat);
    }
    let tree: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    flatten("", &tree, &mut flat)?;
    Ok(flat)
}

fn flatten(path: &str, value: &Value, flat: &mut BTreeMap<String, String>) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, flat)?;
            }
            Ok(())
        }
        // A key without a value says nothing.
        Value::Null => Ok(()),
        Value::Array(items) => {
            let words = items.iter().map(|item| scalar(item).ok_or_else(|| format!("`{path}` has a list of lists")));
            flat.insert(path.to_owned(), words.collect::<Result<Vec<_>, _>>()?.join(","));
            Ok(())
        }
        scalar_value => {
            let text = scalar(scalar_value).ok_or_else(|| format!("`{path}` has no value that can be read"))?;
            flat.insert(path.to_owned(), text);
            Ok(())
        }
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
