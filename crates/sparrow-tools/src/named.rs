//! Enums by the names of their values.

/// `Display` and `FromStr` of an enum by the names of its values.
macro_rules! named {
    ($type:ident, $what:literal, $($value:ident => $name:literal),+) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $($type::$value => $name),+ })
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> std::result::Result<Self, String> {
                match name {
                    $($name => Ok($type::$value),)+
                    _ => Err(format!("unknown {} {name:?}: expected one of {}", $what, [$($name),+].join(", "))),
                }
            }
        }
    };
}

pub(crate) use named;
