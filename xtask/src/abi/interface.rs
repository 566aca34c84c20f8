//! An interface: what bindings declare, item by item, in a form that can be compared. The bindings are bindgen's, so
//! sizes and offsets are the compiler's.

use anyhow::{Context as _, Result, anyhow};
use std::collections::BTreeMap;
use std::fmt;
use syn::visit::Visit;

/// An item's name. They are listed in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Function(String),
    /// A structure or union as a whole.
    Structure(String),
    Member(String, String),
    Constant(String),
    /// Another name of a type, an enumeration for example.
    Alias(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Function(name) => write!(f, "{name}()"),
            Key::Structure(name) => write!(f, "struct {name}"),
            Key::Member(structure, name) => write!(f, "{structure}.{name}"),
            Key::Constant(name) => write!(f, "{name}"),
            Key::Alias(name) => write!(f, "type {name}"),
        }
    }
}

/// Each item, and what is said of it: a signature, a size, an offset with a type, a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface(pub(crate) BTreeMap<Key, String>);

impl Interface {
    /// Of the text of bindings.
    pub(crate) fn parse(bindings: &str) -> Result<Interface> {
        let file = syn::parse_file(bindings).context("the bindings are no Rust")?;
        let mut layout = Layout::default();
        layout.visit_file(&file);
        let mut items = BTreeMap::new();
        for item in &file.items {
            match item {
                syn::Item::ForeignMod(block) => {
                    for item in &block.items {
                        if let syn::ForeignItem::Fn(function) = item {
                            let (name, text) = signature(&function.sig);
                            items.insert(Key::Function(name), text);
                        }
                    }
                }
                syn::Item::Struct(structure) => {
                    let name = structure.ident.to_string();
                    let fields: Vec<_> = structure.fields.iter().collect();
                    layout.add(name, &fields, &mut items)?;
                }
                syn::Item::Union(union) => {
                    let name = union.ident.to_string();
                    let fields: Vec<_> = union.fields.named.iter().collect();
                    layout.add(name, &fields, &mut items)?;
                }
                syn::Item::Const(constant) if constant.ident != "_" => {
                    items.insert(
                        Key::Constant(constant.ident.to_string()),
                        value(&constant.expr),
                    );
                }
                syn::Item::Type(alias) if matches!(alias.vis, syn::Visibility::Public(_)) => {
                    items.insert(Key::Alias(alias.ident.to_string()), type_name(&alias.ty));
                }
                _ => {}
            }
        }
        Ok(Interface(items))
    }
}

/// The numbers in bindgen's layout assertions, by their labels: `["Size of x"][size_of::<x>() - 8usize];`.
#[derive(Default)]
struct Layout(BTreeMap<String, u64>);

impl<'ast> Visit<'ast> for Layout {
    fn visit_expr_index(&mut self, index: &'ast syn::ExprIndex) {
        let label = match &*index.expr {
            syn::Expr::Array(array) => array.elems.first(),
            _ => None,
        };
        let number = match &*index.index {
            syn::Expr::Binary(difference) => Some(&*difference.right),
            _ => None,
        };
        if let (Some(syn::Expr::Lit(label)), Some(syn::Expr::Lit(number))) = (label, number) {
            if let (syn::Lit::Str(label), syn::Lit::Int(number)) = (&label.lit, &number.lit) {
                if let Ok(number) = number.base10_parse() {
                    self.0.insert(label.value(), number);
                }
            }
        }
    }
}

impl Layout {
    fn number(&self, label: String) -> Result<u64> {
        let number = self.0.get(&label).copied();
        number.ok_or_else(|| anyhow!("the bindings do not assert \"{label}\""))
    }

    /// Adds a structure and its members.
    fn add(
        &self,
        name: String,
        fields: &[&syn::Field],
        items: &mut BTreeMap<Key, String>,
    ) -> Result<()> {
        // bindgen's own type, for an array at the end of a structure; and types whose contents are not public.
        let named = fields.iter().any(|field| field.ident.is_some());
        let opaque = fields
            .iter()
            .all(|field| field.ident.as_ref().is_none_or(|name| name == "_unused"));
        if !named || opaque {
            return Ok(());
        }
        let size = self.number(format!("Size of {name}"))?;
        let alignment = self.number(format!("Alignment of {name}"))?;
        items.insert(
            Key::Structure(name.clone()),
            format!("{size} bytes, aligned to {alignment}"),
        );
        for field in fields {
            let member = field.ident.as_ref().map(ToString::to_string);
            let member = member.unwrap_or_default();
            // bindgen's name for a member that is called as a keyword of Rust.
            let name_in_c = member.strip_suffix('_').unwrap_or(&member).to_owned();
            let offset = self.number(format!("Offset of field: {name}::{member}"));
            // Nobody asserts where an anonymous union is; its neighbours tell.
            let place = offset.map_or_else(|_| String::new(), |offset| format!(" at {offset}"));
            items.insert(
                Key::Member(name.clone(), name_in_c),
                format!("{}{place}", type_name(&field.ty)),
            );
        }
        Ok(())
    }
}

/// The name of a function, and its types. The names of the parameters are no part of the interface.
fn signature(signature: &syn::Signature) -> (String, String) {
    let parameters: Vec<String> = signature
        .inputs
        .iter()
        .map(|input| match input {
            syn::FnArg::Typed(input) => type_name(&input.ty),
            syn::FnArg::Receiver(_) => "self".to_owned(),
        })
        .collect();
    let result = match &signature.output {
        syn::ReturnType::Default => "void".to_owned(),
        syn::ReturnType::Type(_, result) => type_name(result),
    };
    (
        signature.ident.to_string(),
        format!("({}) -> {result}", parameters.join(", ")),
    )
}

/// The C type, one name for each: bindgen writes what a header writes, `__u64` or `unsigned long long`.
fn type_name(ty: &syn::Type) -> String {
    match ty {
        syn::Type::Ptr(pointer) => {
            let of = type_name(&pointer.elem);
            match pointer.const_token {
                Some(_) => format!("const {of} *"),
                None => format!("{of} *"),
            }
        }
        syn::Type::Array(array) => format!("{}[{}]", type_name(&array.elem), value(&array.len)),
        syn::Type::Reference(reference) => type_name(&reference.elem),
        syn::Type::Path(path) => {
            let Some(last) = path.path.segments.last() else {
                return String::new();
            };
            let name = match last.ident.to_string().as_str() {
                "c_char" => "char",
                "c_int" | "i32" => "int",
                "c_uint" | "u32" | "__u32" => "unsigned",
                "c_ulonglong" | "c_ulong" | "u64" | "__u64" => "unsigned 64",
                "c_uchar" | "u8" | "__u8" => "unsigned char",
                "usize" => "size_t",
                "c_void" => "void",
                "__IncompleteArrayField" => "array",
                other => other,
            }
            .to_owned();
            let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else {
                return name;
            };
            let of = arguments.args.iter().filter_map(|argument| match argument {
                syn::GenericArgument::Type(of) => Some(type_name(of)),
                _ => None,
            });
            format!("{name} of {}", of.collect::<Vec<_>>().join(", "))
        }
        _ => "another type".to_owned(),
    }
}

/// The value of a constant: a number or a text.
fn value(expr: &syn::Expr) -> String {
    match expr {
        syn::Expr::Lit(literal) => match &literal.lit {
            syn::Lit::Int(number) => number.base10_digits().to_owned(),
            syn::Lit::CStr(text) => format!("{:?}", text.value()),
            _ => "another value".to_owned(),
        },
        syn::Expr::Unary(negative) => format!("-{}", value(&negative.expr)),
        _ => "another value".to_owned(),
    }
}
