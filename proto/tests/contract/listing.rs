//! Everything that a client depends on, a line each.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// The lines of our own files, sorted: a line says all about one thing, so that whatever changes is a line that is gone.
pub(crate) fn of(set: &FileDescriptorSet) -> Vec<String> {
    let mut lines = Vec::new();
    set.file.iter().filter(|file| is_ours(file)).for_each(|file| list_file(file, &mut lines));
    lines.sort();
    lines
}

/// Not one of Google's, which come along because ours use them.
pub(crate) fn is_ours(file: &FileDescriptorProto) -> bool {
    file.name().starts_with("quipu/")
}

fn list_file(file: &FileDescriptorProto, lines: &mut Vec<String>) {
    let package = file.package();
    lines.push(format!("file {} {}", file.name(), file.syntax()));
    file.message_type.iter().for_each(|message| list_message(message, package, lines));
    file.enum_type.iter().for_each(|of| list_enum(of, package, lines));
    file.service.iter().for_each(|service| list_service(service, package, lines));
}

fn list_message(message: &DescriptorProto, scope: &str, lines: &mut Vec<String>) {
    let name = format!("{scope}.{}", message.name());
    lines.push(format!("message {name}"));
    for field in &message.field {
        lines.push(format!("field {name} {}", describe(field, message)));
    }
    for range in &message.reserved_range {
        lines.push(format!("reserved {name} {} to {}", range.start(), range.end() - 1));
    }
    message.reserved_name.iter().for_each(|reserved| lines.push(format!("reserved {name} {reserved}")));
    message.nested_type.iter().for_each(|nested| list_message(nested, &name, lines));
    message.enum_type.iter().for_each(|of| list_enum(of, &name, lines));
}

fn describe(field: &FieldDescriptorProto, of: &DescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        Label::Required => "required ",
        Label::Optional if field.proto3_optional() => "optional ",
        Label::Optional => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().trim_start_matches('.').to_owned(),
        kind => kind.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let oneof = match field.oneof_index {
        Some(index) if !field.proto3_optional() => {
            format!(" in {}", of.oneof_decl[usize::try_from(index).unwrap()].name())
        }
        _ => String::new(),
    };
    let packed = field.options.as_ref().and_then(|options| options.packed);
    let packed = packed.map_or(String::new(), |packed| format!(" packed={packed}"));
    let (number, name, json) = (field.number(), field.name(), field.json_name());
    format!("{number} {label}{kind} {name}{oneof}{packed} json={json}")
}

fn list_enum(of: &EnumDescriptorProto, scope: &str, lines: &mut Vec<String>) {
    let name = format!("{scope}.{}", of.name());
    lines.push(format!("enum {name}"));
    of.value.iter().for_each(|value| lines.push(format!("value {name} {} {}", value.number(), value.name())));
}

fn list_service(service: &ServiceDescriptorProto, scope: &str, lines: &mut Vec<String>) {
    let name = format!("{scope}.{}", service.name());
    lines.push(format!("service {name}"));
    for method in &service.method {
        let stream = |is_stream| if is_stream { "stream " } else { "" };
        let (takes, gives) = (stream(method.client_streaming()), stream(method.server_streaming()));
        let (input, output) = (method.input_type(), method.output_type());
        let (input, output) = (input.trim_start_matches('.'), output.trim_start_matches('.'));
        lines.push(format!("rpc {name}.{}({takes}{input}) returns ({gives}{output})", method.name()));
    }
}
