//! The usual rules for protobuf files, those of `buf lint` with STANDARD and COMMENTS, as far as ours can break them.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

use super::listing::is_ours;

/// Numbers by which source info names the parts of a file, a message, an enum and a service.
const MESSAGES: i32 = 4;
const ENUMS: i32 = 5;
const SERVICES: i32 = 6;
const FIELDS: i32 = 2;
const NESTED_MESSAGES: i32 = 3;
const NESTED_ENUMS: i32 = 4;
const ONEOFS: i32 = 8;
const VALUES: i32 = 2;
const METHODS: i32 = 2;

/// What breaks a rule.
pub(crate) fn check(set: &FileDescriptorSet) -> Vec<String> {
    let mut found = Vec::new();
    // A message is the request or the response of one method only, in all files.
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    for file in set.file.iter().filter(|file| is_ours(file)) {
        let mut lint = Lint { file, commented: commented(file), found: &mut found };
        lint.file();
        for method in file.service.iter().flat_map(|service| &service.method) {
            for name in [method.input_type(), method.output_type()] {
                if let Some(other) = used.insert(name.to_owned(), method.name().to_owned()) {
                    found.push(format!("{name} is used by {} and {other}", method.name()));
                }
            }
        }
    }
    found
}

/// The paths of what has a comment.
fn commented(file: &FileDescriptorProto) -> BTreeSet<Vec<i32>> {
    let places = file.source_code_info.iter().flat_map(|info| &info.location);
    places
        .filter(|place| !place.leading_comments().trim().is_empty())
        .map(|place| place.path.clone())
        .collect()
}

struct Lint<'a> {
    file: &'a FileDescriptorProto,
    commented: BTreeSet<Vec<i32>>,
    found: &'a mut Vec<String>,
}

impl Lint<'_> {
    fn require(&mut self, holds: bool, name: &str, rule: &str) {
        if !holds {
            self.found.push(format!("{}: {name} {rule}", self.file.name()));
        }
    }

    fn comment(&mut self, path: &[i32], name: &str) {
        self.require(self.commented.contains(path), name, "has no comment");
    }

    fn file(&mut self) {
        let file = self.file;
        self.require(file.syntax() == "proto3", file.syntax(), "is not proto3");
        let directory = file.name().rsplit_once('/').map_or("", |(directory, _)| directory);
        let package = file.package();
        self.require(package.replace('.', "/") == directory, package, "is not the directory");
        let version = package.rsplit('.').next().and_then(|last| last.strip_prefix('v'));
        let is_version = version.is_some_and(|digits| digits.parse::<u32>().is_ok());
        self.require(is_version, package, "does not end with a version");
        let stem = file.name().rsplit('/').next().and_then(|name| name.strip_suffix(".proto"));
        self.require(stem.is_some_and(is_lower_snake), file.name(), "is not lower_snake_case");
        let is_private = file.public_dependency.is_empty() && file.weak_dependency.is_empty();
        self.require(is_private, file.name(), "imports something as public or weak");
        for (number, message) in (0..).zip(&file.message_type) {
            self.message(message, &[MESSAGES, number]);
        }
        for (number, of) in (0..).zip(&file.enum_type) {
            self.enumeration(of, &[ENUMS, number]);
        }
        for (number, service) in (0..).zip(&file.service) {
            let name = service.name();
            self.comment(&[SERVICES, number], name);
            self.require(is_pascal(name), name, "is not PascalCase");
            self.require(name.ends_with("Service"), name, "does not end with Service");
            for (method_number, method) in (0..).zip(&service.method) {
                let name = method.name();
                self.comment(&[SERVICES, number, METHODS, method_number], name);
                self.require(is_pascal(name), name, "is not PascalCase");
                for (kind, suffix) in [(method.input_type(), "Request"), (method.output_type(), "Response")] {
                    let wanted = format!("{name}{suffix}");
                    let is_so = kind.rsplit('.').next() == Some(&wanted);
                    self.require(is_so, kind, &format!("is not called {wanted}"));
                }
            }
        }
    }

    fn message(&mut self, message: &DescriptorProto, path: &[i32]) {
        let name = message.name();
        self.comment(path, name);
        self.require(is_pascal(name), name, "is not PascalCase");
        for (number, field) in (0..).zip(&message.field) {
            self.comment(&below(path, FIELDS, number), &format!("{name}.{}", field.name()));
            self.require(is_lower_snake(field.name()), field.name(), "is not lower_snake_case");
        }
        for (number, oneof) in (0..).zip(&message.oneof_decl) {
            let is_of_optional = message
                .field
                .iter()
                .any(|field| field.proto3_optional() && field.oneof_index == Some(number));
            if !is_of_optional {
                self.comment(&below(path, ONEOFS, number), &format!("{name}.{}", oneof.name()));
                self.require(is_lower_snake(oneof.name()), oneof.name(), "is not lower_snake_case");
            }
        }
        for (number, nested) in (0..).zip(&message.nested_type) {
            let is_of_map = nested.options.as_ref().is_some_and(|options| options.map_entry());
            if !is_of_map {
                self.message(nested, &below(path, NESTED_MESSAGES, number));
            }
        }
        for (number, of) in (0..).zip(&message.enum_type) {
            self.enumeration(of, &below(path, NESTED_ENUMS, number));
        }
    }

    fn enumeration(&mut self, of: &EnumDescriptorProto, path: &[i32]) {
        let name = of.name();
        self.comment(path, name);
        self.require(is_pascal(name), name, "is not PascalCase");
        let prefix = format!("{}_", upper_snake(name));
        let mut numbers = BTreeSet::new();
        for (number, value) in (0..).zip(&of.value) {
            self.comment(&below(path, VALUES, number), value.name());
            let is_upper =
                value.name().chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            self.require(is_upper, value.name(), "is not UPPER_SNAKE_CASE");
            self.require(
                value.name().starts_with(&prefix),
                value.name(),
                &format!("does not begin with {prefix}"),
            );
            self.require(numbers.insert(value.number()), value.name(), "is a number that has two names");
            if value.number() == 0 {
                let wanted = format!("{prefix}UNSPECIFIED");
                self.require(value.name() == wanted, value.name(), &format!("is not called {wanted}"));
            }
        }
        self.require(numbers.contains(&0), name, "has no value 0");
    }
}

fn below(path: &[i32], kind: i32, number: i32) -> Vec<i32> {
    [path, &[kind, number]].concat()
}

fn is_lower_snake(name: &str) -> bool {
    let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(is_fine)
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric())
}

fn upper_snake(name: &str) -> String {
    let mut upper = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !upper.is_empty() {
            upper.push('_');
        }
        upper.push(letter.to_ascii_uppercase());
    }
    upper
}
