//! Quoting names and constants in SQL.

/// Quotes an identifier (PostgreSQL documentation 4.1.1).
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string constant, whatever `standard_conforming_strings` says (PostgreSQL documentation 4.1.2.2).
#[must_use]
pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_constants_are_quoted() {
        assert_eq!(identifier(r#"we"ird"#), r#""we""ird""#);
        assert_eq!(literal(r"it's \ here"), r"E'it\'s \\ here'");
    }
}
