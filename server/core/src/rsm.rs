//! Result set management (XEP-0059): pages of a list.
//!
//! What must hold: a page is a run of consecutive items of the list, at most as long as the
//! limit; forward pages begin right after the named item, backward pages end right before it.

use waystation_xml::Element;

use crate::error::{Condition, StanzaError};

/// Namespace of result sets; also the disco feature.
pub const NS_RSM: &str = "http://jabber.org/protocol/rsm";

/// Which page is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// Most items, if the requester says; 0 asks for the count alone (XEP-0059 2.7).
    pub max: Option<u32>,
    /// The page lies after this item.
    pub after: Option<String>,
    /// The page lies before this item.
    pub before: Option<String>,
    /// True for the last items of what `after` and `before` leave, false for the first.
    pub backward: bool,
    /// The page begins at this place, counted from 0 (XEP-0059 2.6); never with the above.
    pub index: Option<u32>,
}

impl PageRequest {
    /// Reads the `<set/>` among a payload's children; `None` when there is none.
    ///
    /// Both `after` and `before` may be given: the page then lies between the two.
    ///
    /// # Errors
    /// `bad-request` for numbers that are not between 0 and 2^32-1, elements that are there
    /// twice, an empty `after`, and an index together with `after` or `before`.
    pub fn parse(payload: &Element) -> Result<Option<Self>, StanzaError> {
        let bad_request = |text: &'static str| Err(StanzaError::new(Condition::BadRequest).with_text(text));
        let mut sets = payload.children().filter(|child| child.is("set", NS_RSM));
        let Some(set) = sets.next() else { return Ok(None) };
        if sets.next().is_some() {
            return bad_request("more than one result set");
        }
        let mut seen = Vec::new();
        let mut request = Self::default();
        let known = |name: &str| ["max", "index", "after", "before"].contains(&name);
        for child in set.children().filter(|child| child.namespace() == NS_RSM && known(child.name())) {
            if seen.contains(&child.name()) {
                return bad_request("an element of the result set is there twice");
            }
            seen.push(child.name());
            let text = child.text();
            match child.name() {
                "max" => request.max = Some(number(&text)?),
                "index" => request.index = Some(number(&text)?),
                "after" if text.is_empty() => return bad_request("after names no item"),
                "after" => request.after = Some(text),
                // Empty, it asks for the last page (XEP-0059 2.5).
                _ => {
                    request.backward = true;
                    request.before = Some(text).filter(|text| !text.is_empty());
                }
            }
        }
        if request.index.is_some() && (request.backward || request.after.is_some()) {
            return bad_request("an index cannot be combined with after or before");
        }
        Ok(Some(request))
    }

    /// How many items the page may have: what was asked for, but never more than `limit`.
    pub fn limit(&self, limit: usize) -> usize {
        self.max.and_then(|max| usize::try_from(max).ok()).map_or(limit, |max| max.min(limit))
    }

    /// Cuts the page out of a list that is in memory. `id` gives an item's unique identifier.
    ///
    /// # Errors
    /// `item-not-found` when `after` or `before` names no item of the list (XEP-0059 2.4).
    pub fn page<'a, T>(
        &self,
        items: &'a [T],
        limit: usize,
        id: impl Fn(&T) -> &str,
    ) -> Result<(&'a [T], PageReply), StanzaError> {
        let place = |wanted: &str| {
            let found = items.iter().position(|item| id(item) == wanted);
            found.ok_or_else(|| StanzaError::new(Condition::ItemNotFound))
        };
        let mut start = self.after.as_deref().map(place).transpose()?.map_or(0, |place| place + 1);
        let end = self.before.as_deref().map(place).transpose()?.unwrap_or(items.len());
        if let Some(index) = self.index {
            start = usize::try_from(index).unwrap_or(usize::MAX).min(items.len());
        }
        let length = self.limit(limit).min(end.saturating_sub(start));
        if self.backward {
            start = end - length;
        }
        // With `before` in front of `after` nothing is left, wherever that nothing begins.
        let page = items.get(start..start + length).unwrap_or(&[]);
        let first = page.first().map(|item| (id(item).to_owned(), Some(start)));
        let last = page.last().map(|item| id(item).to_owned());
        Ok((page, PageReply { bounds: first.zip(last), count: Some(items.len()) }))
    }
}

/// A number of XML Schema's `unsignedInt`.
fn number(text: &str) -> Result<u32, StanzaError> {
    // Rust's parser would also take a sign.
    if text.starts_with('+') {
        return Err(StanzaError::new(Condition::BadRequest));
    }
    text.parse().map_err(|_| {
        StanzaError::new(Condition::BadRequest)
            .with_text("a number of the result set is not between 0 and 4294967295")
    })
}

/// What is said of a page that is returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageReply {
    /// Identifiers of the first item, with its place in the list if known, and of the last
    /// item, in the order of the list; `None` for an empty page.
    pub bounds: Option<((String, Option<usize>), String)>,
    /// Length of the whole list, if known.
    pub count: Option<usize>,
}

impl PageReply {
    /// The `<set/>` element.
    pub fn to_element(&self) -> Element {
        let child = |name, text: &str| Element::new(name, NS_RSM).with_text(text);
        let mut set = Element::new("set", NS_RSM);
        if let Some(((first, index), last)) = &self.bounds {
            let mut first = child("first", first);
            if let Some(index) = index {
                first.set_attr("index", index.to_string());
            }
            set.push(first);
            set.push(child("last", last));
        }
        if let Some(count) = self.count {
            set.push(child("count", &count.to_string()));
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(inner: &str) -> Result<Option<PageRequest>, StanzaError> {
        let xml = format!("<query xmlns='urn:x'><set xmlns='{NS_RSM}'>{inner}</set></query>");
        PageRequest::parse(&Element::parse(xml.as_bytes(), "").unwrap())
    }

    fn request(max: u32) -> PageRequest {
        PageRequest { max: Some(max), ..PageRequest::default() }
    }

    #[test]
    fn requests_are_read_as_xep_0059_2_shows() {
        for (inner, expected) in [
            ("", PageRequest::default()),
            ("<max>10</max>", request(10)),
            ("<max>0</max>", request(0)),
            ("<count>1</count><count>2</count><max xmlns='urn:x'>no</max>", PageRequest::default()),
            ("<max>10</max><after>p@x</after>", PageRequest { after: Some("p@x".into()), ..request(10) }),
            (
                "<max>10</max><before>p@x</before>",
                PageRequest { before: Some("p@x".into()), backward: true, ..request(10) },
            ),
            ("<max>10</max><before/>", PageRequest { backward: true, ..request(10) }),
            ("<index>371</index><max>10</max>", PageRequest { index: Some(371), ..request(10) }),
            (
                "<before/><after>a</after>",
                PageRequest { after: Some("a".into()), backward: true, ..PageRequest::default() },
            ),
        ] {
            assert_eq!(parse(inner), Ok(Some(expected)), "{inner}");
        }
        let other = Element::parse(b"<query xmlns='urn:x'><set/></query>", "").unwrap();
        assert_eq!(PageRequest::parse(&other), Ok(None));
    }

    #[test]
    fn m1_malformed_requests_are_bad_requests() {
        for inner in [
            "<max>-1</max>",
            "<max>+1</max>",
            "<max/>",
            "<max>ten</max>",
            "<max>1.5</max>",
            "<max> 1</max>",
            "<max>4294967296</max>",
            "<max>18446744073709551616</max>",
            "<index>-1</index>",
            "<max>1</max><max>2</max>",
            "<after/>",
            "<index>1</index><after>a</after>",
            "<index>1</index><before/>",
        ] {
            assert_eq!(parse(inner).unwrap_err().condition, Condition::BadRequest, "{inner}");
        }
        let twice = format!("<query xmlns='urn:x'><set xmlns='{NS_RSM}'/><set xmlns='{NS_RSM}'/></query>");
        let twice = Element::parse(twice.as_bytes(), "").unwrap();
        assert_eq!(PageRequest::parse(&twice).unwrap_err().condition, Condition::BadRequest);
    }

    #[test]
    fn m1_huge_pages_are_cut_to_the_limit() {
        assert_eq!(parse("<max>1000000000</max>").unwrap().unwrap().limit(100), 100);
        assert_eq!(request(5).limit(100), 5);
        assert_eq!(PageRequest::default().limit(100), 100);
    }

    #[test]
    fn replies_are_written_as_xep_0059_2_shows() {
        let written = |reply: PageReply| String::from_utf8(reply.to_element().to_vec("")).unwrap();
        let bounds = Some((("a".to_owned(), Some(0)), "b".to_owned()));
        assert_eq!(
            written(PageReply { bounds, count: Some(800) }),
            "<set xmlns='http://jabber.org/protocol/rsm'><first index='0'>a</first><last>b</last><count>800</count></set>"
        );
        assert_eq!(
            written(PageReply { bounds: None, count: Some(790) }),
            "<set xmlns='http://jabber.org/protocol/rsm'><count>790</count></set>"
        );
        let bounds = Some((("a".to_owned(), None), "a".to_owned()));
        assert_eq!(
            written(PageReply { bounds, count: None }),
            "<set xmlns='http://jabber.org/protocol/rsm'><first>a</first><last>a</last></set>"
        );
    }

    #[test]
    fn deleted_items_are_not_found() {
        let items = ["a", "b"];
        for request in [
            PageRequest { after: Some("c".into()), ..request(1) },
            PageRequest { before: Some("c".into()), backward: true, ..request(1) },
        ] {
            let error = request.page(&items, 10, |item| item).unwrap_err();
            assert_eq!(error.condition, Condition::ItemNotFound);
        }
    }

    /// The page as the specification defines it, item by item.
    fn model(items: &[String], request: &PageRequest, limit: usize) -> Vec<String> {
        let mut left = items.to_vec();
        if let Some(after) = &request.after {
            while left.remove(0) != *after {}
        }
        if let Some(before) = &request.before {
            let end = left.iter().position(|item| item == before).unwrap_or(0);
            left.truncate(end);
        }
        if let Some(index) = request.index {
            left = left.into_iter().skip(index as usize).collect();
        }
        let length = request.limit(limit).min(left.len());
        if request.backward { left.split_off(left.len() - length) } else { left[..length].to_vec() }
    }

    fn place(length: usize) -> impl Strategy<Value = Option<String>> {
        proptest::option::of((0..length.max(1)).prop_map(|place| format!("id{place}")))
    }

    proptest! {
        #[test]
        fn pages_agree_with_the_model(
            (length, request) in (0usize..12).prop_flat_map(|length| {
                let max = proptest::option::of(0u32..14);
                let index = proptest::option::of(0u32..14);
                (Just(length), max, place(length), place(length), any::<bool>(), index)
            }).prop_map(|(length, max, after, before, backward, index)| {
                let index = index.filter(|_| after.is_none() && before.is_none() && !backward);
                let backward = backward || before.is_some();
                (length, PageRequest { max, after, before, backward, index })
            }),
            limit in 0usize..10,
        ) {
            let items: Vec<_> = (0..length).map(|place| format!("id{place}")).collect();
            let known = |id: &Option<String>| id.as_ref().is_none_or(|id| items.contains(id));
            let page = request.page(&items, limit, String::as_str);
            if !known(&request.after) || !known(&request.before) {
                prop_assert_eq!(page.unwrap_err().condition, Condition::ItemNotFound);
            } else {
                let (page, reply) = page.unwrap();
                prop_assert_eq!(page, &model(&items, &request, limit)[..]);
                prop_assert_eq!(reply.count, Some(length));
                match reply.bounds {
                    None => prop_assert!(page.is_empty()),
                    Some(((first, index), last)) => {
                        prop_assert_eq!(Some(&first), page.first());
                        prop_assert_eq!(Some(&last), page.last());
                        prop_assert_eq!(items.get(index.unwrap()), Some(&first));
                    }
                }
            }
        }

        #[test]
        fn paging_through_gives_every_item_once(length in 0usize..40, size in 1usize..9, backward in any::<bool>()) {
            let items: Vec<_> = (0..length).map(|place| format!("id{place}")).collect();
            let mut request = PageRequest { backward, ..PageRequest::default() };
            let mut seen = Vec::new();
            loop {
                let (page, reply) = request.page(&items, size, String::as_str).unwrap();
                let Some(((first, _), last)) = reply.bounds else { break };
                if backward {
                    // A flipped page is the same page sent in reverse: its bounds do not change.
                    seen.extend(page.iter().rev().cloned());
                    request.before = Some(first);
                } else {
                    seen.extend(page.iter().cloned());
                    request.after = Some(last);
                }
            }
            if backward {
                seen.reverse();
            }
            prop_assert_eq!(seen, items);
        }

        #[test]
        fn no_request_panics(parts in proptest::collection::vec((0..5usize, "[0-9+-]{0,12}|\\PC{0,4}"), 0..6)) {
            let names = ["max", "after", "before", "index", "x"];
            let mut set = Element::new("set", NS_RSM);
            for (name, text) in parts {
                set.push(Element::new(names[name], NS_RSM).with_text(&text));
            }
            if let Ok(Some(request)) = PageRequest::parse(&Element::new("query", "urn:x").with_child(set)) {
                let _ = request.page(&["1", "2", "3"], 2, |item| item);
            }
        }
    }
}
