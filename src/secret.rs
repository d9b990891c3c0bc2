//! Secrets come from the environment or from a file, never from an argument, and can't be printed.

use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;

use crate::outcome::Misconfigured;

/// Reads a secret from a file when one is named, else from the environment variable. Surrounding line ends are cut off;
/// an empty secret counts as none.
pub fn read(file: Option<&Path>, variable: &str) -> anyhow::Result<Option<SecretString>> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("read secret file {}", path.display()))
            .context(Misconfigured)?,
        None => std::env::var(variable).unwrap_or_default(),
    };
    let text = text.trim_end_matches(['\r', '\n']);
    Ok((!text.is_empty()).then(|| SecretString::from(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn secret_file_is_read_without_its_line_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        let secret = read(Some(file.path()), "UNUSED").unwrap().unwrap();
        assert_eq!(secret.expose_secret(), "s3cret");
        assert!(!format!("{secret:?}").contains("s3cret"));
    }

    #[test]
    fn secret_file_that_is_missing_is_a_configuration_error() {
        let error = read(Some(Path::new("/nonexistent/secret")), "UNUSED").unwrap_err();
        assert!(error.downcast_ref::<Misconfigured>().is_some());
    }
}
