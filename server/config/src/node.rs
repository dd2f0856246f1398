//! Sections and keys as one tree, declared once: name, kind, default, bounds and text.

use crate::reader::Reader;
use crate::value::{Bounds, Leaf};

/// The lines of a text, as `///` comments give them.
pub(crate) type Text = &'static [&'static str];

/// What a walk over the tree meets.
pub(crate) struct Item {
    /// The full name, such as `tls.required`.
    pub(crate) key: String,
    /// What it is for.
    pub(crate) text: Text,
    /// What it is.
    pub(crate) kind: ItemKind,
}

pub(crate) enum ItemKind {
    /// A section; its keys follow.
    Section,
    /// A key with what may be written and its value as TOML.
    Key { expected: String, value: String },
}

/// A section or a key.
pub(crate) trait Node: Sized {
    /// The value that the sources give; `self` is the default.
    fn read(self, key: &str, bounds: Bounds<'_, Self>, reader: &mut Reader<'_>) -> Self;

    /// Adds this and what is below it to the list, in the order of the file.
    fn list(&self, key: &str, text: Text, bounds: Bounds<'_, Self>, items: &mut Vec<Item>);
}

impl<T: Leaf> Node for T {
    fn read(self, key: &str, bounds: Bounds<'_, Self>, reader: &mut Reader<'_>) -> Self {
        reader.leaf(key, self, bounds)
    }

    fn list(&self, key: &str, text: Text, bounds: Bounds<'_, Self>, items: &mut Vec<Item>) {
        let kind = ItemKind::Key { expected: T::expected(bounds), value: self.toml() };
        items.push(Item { key: key.to_owned(), text, kind });
    }
}

/// The name of a member of a section; the root has no name.
pub(crate) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// Declares a section: `name: kind = default, lowest => highest;`, the bounds being optional.
/// The comments are both the documentation of the field and the text of the reference file.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $text:literal])*
                $field:ident: $kind:ty = $default:expr $(, $low:expr => $high:expr)?;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $text])* pub $field: $kind, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::node::Node for $name {
            fn read(
                self,
                key: &str,
                _: $crate::value::Bounds<'_, Self>,
                reader: &mut $crate::reader::Reader<'_>,
            ) -> Self {
                Self { $(
                    $field: $crate::node::Node::read(
                        self.$field,
                        &$crate::node::join(key, stringify!($field)),
                        $crate::node::bounds!($($low => $high)?),
                        reader,
                    ),
                )* }
            }

            fn list(
                &self,
                key: &str,
                text: $crate::node::Text,
                _: $crate::value::Bounds<'_, Self>,
                items: &mut Vec<$crate::node::Item>,
            ) {
                let kind = $crate::node::ItemKind::Section;
                items.push($crate::node::Item { key: key.to_owned(), text, kind });
                $(
                    $crate::node::Node::list(
                        &self.$field,
                        &$crate::node::join(key, stringify!($field)),
                        &[$($text),*],
                        $crate::node::bounds!($($low => $high)?),
                        items,
                    );
                )*
            }
        }
    };
}

macro_rules! bounds {
    () => {
        None
    };
    ($low:expr => $high:expr) => {
        Some(&($low..=$high))
    };
}

pub(crate) use {bounds, section};
