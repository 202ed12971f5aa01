//! Keyset pages, forward and backward: where one begins, what leads on from it, and the `Link` that says so.
//!
//! # Why do the cursors at both ends not promise an item?
//! Whether one more item lies ahead is known, because one more was read. Behind lies the place that the page was asked from;
//! what stood there may be gone by now, and asking would cost a second query on every page. Such a cursor then leads to
//! an empty page, which leads back.

use url::form_urlencoded::Serializer;
use uuid::Uuid;

use crate::cursor::{Cursor, Toward};
use crate::problem::Problem;

const DEFAULT_LIMIT: u32 = 50;

/// In which order a list shows its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The lowest first.
    Ascending,
    /// The highest first.
    Descending,
}

/// Which page of a list was asked for.
#[derive(Debug)]
pub(crate) struct Paging {
    /// The path of the list, to which its cursors are bound.
    list: String,
    order: Order,
    cursor: Option<Cursor>,
    limit: u32,
}

/// A page, and what leads on from it.
#[derive(Debug)]
pub(crate) struct Paged<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next: Option<String>,
    pub(crate) previous: Option<String>,
}

impl Paging {
    /// Reads what the client sent; the limit is within its bounds already.
    pub(crate) fn read(list: String, order: Order, cursor: Option<&str>, limit: Option<u32>) -> Result<Self, Problem> {
        let cursor = cursor.map(|text| Cursor::decode(text, &list)).transpose()?;
        Ok(Self { list, order, cursor, limit: limit.unwrap_or(DEFAULT_LIMIT) })
    }

    /// In which order to read, and the id beyond which to begin.
    pub(crate) fn start(&self) -> (Order, Uuid) {
        let order = match (self.order, self.toward()) {
            (order, Toward::Next) => order,
            (Order::Ascending, Toward::Previous) => Order::Descending,
            (Order::Descending, Toward::Previous) => Order::Ascending,
        };
        let edge = match order {
            Order::Ascending => Uuid::nil(),
            Order::Descending => Uuid::max(),
        };
        (order, self.cursor.map_or(edge, |cursor| cursor.from))
    }

    /// How many to read: one more than the page holds shows whether it is the last.
    pub(crate) fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// Whether this is the beginning of the list.
    pub(crate) fn first(&self) -> bool {
        self.cursor.is_none()
    }

    /// Makes a page of what was read.
    pub(crate) fn page<T>(&self, mut rows: Vec<T>, id: impl Fn(&T) -> Uuid) -> Paged<T> {
        let limit = self.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        if self.toward() == Toward::Previous {
            rows.reverse();
        }
        let encode = |toward, from| Cursor { toward, from }.encode(&self.list);
        let ahead = rows.last().filter(|_| more || self.toward() == Toward::Previous).map(&id);
        let behind = rows.first().filter(|_| if self.toward() == Toward::Next { !self.first() } else { more }).map(&id);
        let mut next = ahead.map(|id| encode(Toward::Next, id));
        let mut previous = behind.map(|id| encode(Toward::Previous, id));
        if let (true, Some(cursor)) = (rows.is_empty(), self.cursor) {
            // What stood beyond the cursor is gone. The way back includes where it stands.
            match cursor.toward {
                Toward::Next => previous = Some(encode(Toward::Previous, self.beside(cursor.from, Toward::Next))),
                Toward::Previous => next = Some(encode(Toward::Next, self.beside(cursor.from, Toward::Previous))),
            }
        }
        Paged { items: rows, next, previous }
    }

    /// `Link` (RFC 8288), with the filters that the page was asked for with.
    pub(crate) fn link<T>(&self, paged: &Paged<T>, filters: &[(&str, Option<&str>)]) -> Option<String> {
        let target = |cursor: &str, relation: &str| {
            let mut query = Serializer::new(String::new());
            query.append_pair("cursor", cursor).append_pair("limit", &self.limit.to_string());
            for (name, value) in filters {
                if let Some(value) = value {
                    query.append_pair(name, value);
                }
            }
            format!("<{}?{}>; rel=\"{relation}\"", self.list, query.finish())
        };
        let links = [(&paged.previous, "prev"), (&paged.next, "next")];
        let links: Vec<_> = links.iter().filter_map(|(cursor, rel)| Some(target(cursor.as_deref()?, rel))).collect();
        (!links.is_empty()).then(|| links.join(", "))
    }

    fn toward(&self) -> Toward {
        self.cursor.map_or(Toward::Next, |cursor| cursor.toward)
    }

    /// The neighbour of an id.
    fn beside(&self, id: Uuid, toward: Toward) -> Uuid {
        let id = id.as_u128();
        Uuid::from_u128(match (self.order, toward) {
            (Order::Ascending, Toward::Next) | (Order::Descending, Toward::Previous) => id.saturating_add(1),
            (Order::Ascending, Toward::Previous) | (Order::Descending, Toward::Next) => id.saturating_sub(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What the SQL does.
    fn read(stored: &BTreeSet<u128>, paging: &Paging) -> Vec<Uuid> {
        let (order, beyond) = paging.start();
        let rows = usize::try_from(paging.rows()).expect("few");
        match order {
            Order::Ascending => {
                stored.iter().filter(|id| **id > beyond.as_u128()).take(rows).copied().map(Uuid::from_u128).collect()
            }
            Order::Descending => {
                let rest = stored.iter().rev().filter(|id| **id < beyond.as_u128());
                rest.take(rows).copied().map(Uuid::from_u128).collect()
            }
        }
    }

    fn walk(stored: &BTreeSet<u128>, order: Order, mut cursor: Option<String>, limit: u32, on: Toward) -> Vec<Uuid> {
        let mut seen = Vec::new();
        loop {
            let paging = Paging::read("/x".to_owned(), order, cursor.as_deref(), Some(limit)).expect("our own cursor");
            let mut paged = paging.page(read(stored, &paging), |id| *id);
            cursor = match on {
                Toward::Next => {
                    seen.append(&mut paged.items);
                    paged.next
                }
                Toward::Previous => {
                    paged.items.append(&mut seen);
                    seen = paged.items;
                    paged.previous
                }
            };
            if cursor.is_none() {
                return seen;
            }
        }
    }

    proptest! {
        #[test]
        fn forward_and_backward_pages_show_everything_once(
            stored in prop::collection::btree_set(1..u128::MAX, 1..40),
            limit in 1..12_u32,
            descending in any::<bool>(),
        ) {
            let order = if descending { Order::Descending } else { Order::Ascending };
            let mut expected: Vec<_> = stored.iter().copied().map(Uuid::from_u128).collect();
            if descending {
                expected.reverse();
            }
            prop_assert_eq!(&walk(&stored, order, None, limit, Toward::Next), &expected);
            // Back from behind the last item.
            let end = Cursor { toward: Toward::Previous, from: if descending { Uuid::nil() } else { Uuid::max() } };
            prop_assert_eq!(walk(&stored, order, Some(end.encode("/x")), limit, Toward::Previous), expected);
        }

        #[test]
        fn an_empty_page_leads_back_to_where_its_cursor_stands(id in 1..u128::MAX, descending in any::<bool>(), next in any::<bool>()) {
            let order = if descending { Order::Descending } else { Order::Ascending };
            let toward = if next { Toward::Next } else { Toward::Previous };
            let cursor = Cursor { toward, from: Uuid::from_u128(id) }.encode("/x");
            let stored = BTreeSet::from([id]);
            let paging = Paging::read("/x".to_owned(), order, Some(&cursor), Some(5)).expect("our own cursor");
            let empty = paging.page(read(&stored, &paging), |id| *id);
            prop_assert!(empty.items.is_empty());
            prop_assert_eq!((empty.previous.is_some(), empty.next.is_some()), (next, !next));
            let back = empty.previous.or(empty.next);
            let paging = Paging::read("/x".to_owned(), order, back.as_deref(), Some(5)).expect("our own cursor");
            prop_assert_eq!(read(&stored, &paging), vec![Uuid::from_u128(id)]);
        }
    }
}
