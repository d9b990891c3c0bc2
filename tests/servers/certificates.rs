//! Authorities of the test's own, and what they sign.

use std::{fs, path::Path, process::Command};

use crate::postgres::{own, run};

fn openssl(home: &Path, arguments: &str) {
    run(Command::new("openssl").current_dir(home).args(arguments.split_whitespace()));
}

pub fn authority(home: &Path, name: &str) {
    openssl(
        home,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=lifeboat-{name} \
             -keyout {name}.key -out {name}.crt"
        ),
    );
}

/// A certificate of the authority `ca`, as files that PostgreSQL takes.
pub fn certificate(home: &Path, name: &str) {
    fs::write(home.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let request = "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost";
    openssl(home, &format!("{request} -keyout {name}.key -out {name}.csr"));
    let sign = "x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names";
    openssl(home, &format!("{sign} -in {name}.csr -out {name}.crt"));
    own(&home.join(format!("{name}.key")));
    own(&home.join(format!("{name}.crt")));
}
