//! A JSON object of which single members are removed or replaced while every other byte stays as it is.
//!
//! Patroni and its operators own this text: order, spacing and numbers must survive our edit.

use std::{borrow::Cow, fmt, ops::Range};

use anyhow::{Context, anyhow, bail};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// A parsed object and the place of each member in its text.
#[derive(Debug)]
pub struct Document<'a> {
    text: &'a str,
    members: Vec<MemberSpan>,
}

#[derive(Debug)]
struct MemberSpan {
    key: String,
    /// From the key's opening quote to the value's end.
    whole: Range<usize>,
    value: Range<usize>,
}

impl<'a> Document<'a> {
    /// Parses an object. Duplicate keys are refused: readers differ on which one counts.
    pub fn parse(text: &'a str) -> anyhow::Result<Self> {
        let raw: RawMembers<'a> = serde_json::from_str(text).context("parse the JSON object")?;
        let mut members: Vec<MemberSpan> = Vec::with_capacity(raw.0.len());
        for (key, value) in raw.0 {
            if members.iter().any(|member| member.key == key) {
                bail!("the key {key:?} is there twice");
            }
            // The raw value borrows from `text`, so the distance of the two addresses is its place.
            let start = value.get().as_ptr() as usize - text.as_ptr() as usize;
            let after = members.last().map_or(0, |member| member.whole.end);
            let key_start =
                text[after..start].find('"').ok_or_else(|| anyhow!("the key {key:?} has no quote"))? + after;
            let value = start..start + value.get().len();
            members.push(MemberSpan { key: key.into_owned(), whole: key_start..value.end, value });
        }
        Ok(Self { text, members })
    }

    /// The text of a member's value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.members.iter().find(|member| member.key == key).map(|member| &self.text[member.value.clone()])
    }

    /// The text without a member (and without the comma that goes with it); unchanged if there is none of that key.
    #[must_use]
    pub fn without(&self, key: &str) -> String {
        let Some(index) = self.members.iter().position(|member| member.key == key) else { return self.text.to_owned() };
        let gone = &self.members[index].whole;
        let cut = match (index.checked_sub(1).map(|i| &self.members[i]), self.members.get(index + 1)) {
            (_, Some(next)) => gone.start..next.whole.start,
            (Some(previous), None) => previous.whole.end..gone.end,
            (None, None) => gone.clone(),
        };
        format!("{}{}", &self.text[..cut.start], &self.text[cut.end..])
    }

    /// The text with a member's value replaced, or with the member added behind the last one.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> String {
        if let Some(member) = self.members.iter().find(|member| member.key == key) {
            return format!("{}{value}{}", &self.text[..member.value.start], &self.text[member.value.end..]);
        }
        let quoted = serde_json::Value::from(key);
        match self.members.last() {
            Some(last) => {
                let (before, after) = self.text.split_at(last.whole.end);
                format!("{before}, {quoted}: {value}{after}")
            }
            None => format!("{{{quoted}: {value}}}"),
        }
    }
}

struct RawMembers<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = RawMembers<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                    members.push((Cow::Owned(key), value));
                }
                Ok(RawMembers(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn without(text: &str) -> String {
        Document::parse(text).unwrap().without("standby_cluster")
    }

    #[test]
    fn member_removed_leaves_every_other_byte() {
        for (text, left) in [
            (r#"{"ttl": 30, "standby_cluster": {"host": "h", "port": 1}, "b":2}"#, r#"{"ttl": 30, "b":2}"#),
            (r#"{"standby_cluster":{"a":"}\",{"},"ttl":30.0}"#, r#"{"ttl":30.0}"#),
            (r#"{ "ttl" : 3e1 ,  "standby_cluster": null }"#, r#"{ "ttl" : 3e1 }"#),
            (r#"{"standby_cluster": {}}"#, "{}"),
            ("{\n  \"a\": 1,\n  \"standby_cluster\": {},\n  \"b\": 2\n}\n", "{\n  \"a\": 1,\n  \"b\": 2\n}\n"),
            (
                r#"{"x": {"standby_cluster": 1}, "y": "standby_cluster"}"#,
                r#"{"x": {"standby_cluster": 1}, "y": "standby_cluster"}"#,
            ),
            (r#"{"standby\u005fcluster": 1, "a": 2}"#, r#"{"a": 2}"#),
        ] {
            assert_eq!(without(text), left);
        }
    }

    #[test]
    fn member_replaced_or_added() {
        let document = |text| Document::parse(text).unwrap().with("standby_cluster", r#"{"port": 2}"#);
        assert_eq!(
            document(r#"{"a": 1, "standby_cluster": {"port": 1}, "b": 2}"#),
            r#"{"a": 1, "standby_cluster": {"port": 2}, "b": 2}"#
        );
        assert_eq!(document(r#"{"a": 1 }"#), r#"{"a": 1, "standby_cluster": {"port": 2} }"#);
        assert_eq!(document("{ }"), r#"{"standby_cluster": {"port": 2}}"#);
    }

    #[test]
    fn text_that_is_no_object_or_has_a_key_twice_is_refused() {
        for bad in [
            "",
            "null",
            "[]",
            "{",
            r#"{"a":1}{"#,
            r#"{"a":1,"a":2}"#,
            r#"{"standby_cluster":1,"standby\u005fcluster":2}"#,
        ] {
            assert!(Document::parse(bad).is_err(), "{bad}");
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "\\PC{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map("[\\PC\"\\\\]{0,6}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn member_removed_from_any_object_is_the_object_without_it(
            members in prop::collection::hash_map("[\\PC\"\\\\]{0,8}", json(), 0..6), standby in json(), at in 0usize..7, pretty: bool,
        ) {
            let mut object = serde_json::Map::new();
            let at = at.min(members.len());
            for (index, (key, value)) in members.into_iter().filter(|(key, _)| key != "standby_cluster").enumerate() {
                if index == at {
                    object.insert("standby_cluster".into(), standby.clone());
                }
                object.insert(key, value);
            }
            object.entry("standby_cluster").or_insert(standby);
            let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) }.unwrap();
            object.shift_remove("standby_cluster");
            let left: serde_json::Value = serde_json::from_str(&without(&text)).unwrap();
            prop_assert_eq!(left, serde_json::Value::Object(object));
        }
    }
}
