//! JSON objects, as far as a report needs them.

use std::fmt::Write;

/// A JSON object in the making.
#[derive(Debug, Default)]
pub struct Object {
    members: String,
}

impl Object {
    /// Adds a member whose value is JSON already.
    pub fn raw(&mut self, name: &str, value: &str) {
        let comma = if self.members.is_empty() { "" } else { "," };
        let _ = write!(self.members, "{comma}{}:{value}", quoted(name));
    }

    /// Adds a string.
    pub fn text(&mut self, name: &str, value: &str) {
        self.raw(name, &quoted(value));
    }

    /// Adds a number. JSON has no NaN: what is no number is null.
    pub fn number(&mut self, name: &str, value: Option<f64>) {
        match value.filter(|value| value.is_finite()) {
            Some(value) => self.raw(name, &value.to_string()),
            None => self.raw(name, "null"),
        }
    }

    /// The object's text.
    pub fn finish(self) -> String {
        format!("{{{}}}", self.members)
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd µs"), "\"a\\\"b\\\\c\\u000ad µs\"");
    }

    #[test]
    fn members_come_in_order_and_no_number_is_null() {
        let mut object = Object::default();
        object.text("name", "a");
        object.number("figure", Some(0.5));
        object.number("ratio", Some(f64::NAN));
        object.number("bar", None);
        object.raw("held", "true");
        assert_eq!(object.finish(), r#"{"name":"a","figure":0.5,"ratio":null,"bar":null,"held":true}"#);
    }
}
