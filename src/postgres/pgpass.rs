//! The password file that `PGPASSFILE` names (PostgreSQL documentation 32.16, "The Password File").

use secrecy::SecretString;

/// The password of the first line that fits, from the file that `PGPASSFILE` names; none without one.
#[must_use]
pub fn lookup(host: &str, port: u16, dbname: &str, user: &str) -> Option<SecretString> {
    let file = std::env::var_os("PGPASSFILE").filter(|path| !path.is_empty())?;
    match std::fs::read_to_string(&file) {
        Ok(text) => find(&text, [host, &port.to_string(), dbname, user]).map(SecretString::from),
        Err(error) => {
            tracing::warn!("read PGPASSFILE {}: {error}", file.display());
            None
        }
    }
}

/// Lines are `host:port:database:user:password`; `*` fits all, and a backslash takes the next character as it is.
fn find(text: &str, wanted: [&str; 4]) -> Option<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(fields).find_map(|fields| match fields.as_slice() {
        [keys @ .., password] if keys.len() == 4 => {
            let fits = keys.iter().zip(wanted).all(|(key, wanted)| key == "*" || key == wanted);
            fits.then(|| password.clone())
        }
        _ => None,
    })
}

fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (character, fields.len()) {
            ('\\', _) => fields.last_mut().into_iter().for_each(|field| field.extend(characters.next())),
            (':', 1..=4) => fields.push(String::new()),
            _ => fields.last_mut().into_iter().for_each(|field| field.push(character)),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_that_fits_wins() {
        let text = "# comment\nother:*:*:*:no\nh\\:1:5432:*:me:pa\\:ss\\\\word:x\n*:*:*:*:any\n";
        assert_eq!(find(text, ["h:1", "5432", "db", "me"]).as_deref(), Some("pa:ss\\word:x"));
        assert_eq!(find(text, ["h", "1", "db", "you"]).as_deref(), Some("any"));
        assert_eq!(find("a:1:b", ["a", "1", "b", "c"]), None);
    }
}
