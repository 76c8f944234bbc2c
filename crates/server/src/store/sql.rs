//! A query that is put together from parts. Its values are numbered as both databases take them, which the library's
//! own builder does not do where the database is chosen at run time.

use std::fmt::Write;

use sqlx::any::AnyArguments;
use sqlx::{Any, Arguments, AssertSqlSafe, Encode, Type};

use super::AnyQuery;

/// Text and values.
pub(super) struct Sql {
    text: String,
    values: AnyArguments,
}

impl Sql {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), values: AnyArguments::default() }
    }

    /// Adds text, which is ours and never a caller's.
    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a value in its place.
    pub(super) fn bind<T>(&mut self, value: T) -> &mut Self
    where
        T: for<'q> Encode<'q, Any> + Type<Any> + 'static,
    {
        self.values.add(value).expect("texts and numbers can always be encoded");
        // Writing to a string does not fail.
        let _ = write!(self.text, "${}", self.values.len());
        self
    }

    /// Adds values between commas.
    pub(super) fn bind_all(&mut self, values: impl IntoIterator<Item = String>) -> &mut Self {
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.push(", ");
            }
            self.bind(value);
        }
        self
    }

    pub(super) fn build(self) -> AnyQuery<'static> {
        sqlx::query_with(AssertSqlSafe(self.text), self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_in_their_order() {
        let mut sql = Sql::new("SELECT a FROM b WHERE c = ");
        sql.bind(1i64).push(" AND d IN (").bind_all(["x".to_owned(), "y".to_owned()]).push(") LIMIT ").bind(5i64);
        assert_eq!(sql.text, "SELECT a FROM b WHERE c = $1 AND d IN ($2, $3) LIMIT $4");
        assert_eq!(sql.values.len(), 4);
    }
}
