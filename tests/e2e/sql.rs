//! SQL to a site's primary through its node port.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::system::Background;

/// A session that drives itself on a runtime of its own.
pub struct Session {
    client: Client,
    runtime: Runtime,
    _way: Option<Background>,
}

impl Session {
    pub fn open(host: &str, port: u16, user: &str, password: &str, dbname: &str) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut config = Config::new();
        config
            .host(host)
            .port(port)
            .user(user)
            .password(password)
            .dbname(dbname)
            .connect_timeout(Duration::from_secs(3));
        let (client, connection) = runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(5), config.connect(NoTls)).await })
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| {
                error
                    .as_db_error()
                    .map_or_else(|| error.to_string(), |e| format!("{}: {}", e.code().code(), e.message()))
            })?;
        runtime.spawn(connection);
        Ok(Self { client, runtime, _way: None })
    }

    /// With a process that must live as long as the session.
    pub fn through(self, way: Background) -> Self {
        Self { _way: Some(way), ..self }
    }

    /// Runs statements; the rows of the last one, columns joined by `|`.
    pub fn try_query(&self, sql: &str) -> Result<Vec<String>, String> {
        let query = async { tokio::time::timeout(Duration::from_secs(10), self.client.simple_query(sql)).await };
        let messages = self.runtime.block_on(query).map_err(|_| format!("{sql}: no answer"))?.map_err(|error| {
            error.as_db_error().map_or_else(|| error.to_string(), |e| format!("{}: {}", e.code().code(), e.message()))
        })?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).unwrap_or_default()).collect::<Vec<_>>().join("|"))
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    pub fn query(&self, sql: &str) -> Vec<String> {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn one(&self, sql: &str) -> String {
        self.query(sql).into_iter().next().unwrap_or_else(|| panic!("{sql}: no row"))
    }
}
