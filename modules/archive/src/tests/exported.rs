//! Exports.

use waystation_core::Element;

use super::world::*;
use crate::{ExportError, export};

#[tokio::test]
async fn an_export_is_written_as_xep_0227_shows() {
    let world = world();
    world.fill([1, 2]).await;
    let mut out = Vec::new();
    assert_eq!(export(&*world.storage, &jid(JULIET), &mut out).await.unwrap(), 2);
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.starts_with(
            "<?xml version='1.0' encoding='UTF-8'?>\n<server-data xmlns='urn:xmpp:pie:0'>\n\
             <host jid='capulet.example'>\n<user name='juliet'>\n<archive xmlns='urn:xmpp:pie:0#mam'>\n\
             <result xmlns='urn:xmpp:mam:2' id='0000000000001'><forwarded xmlns='urn:xmpp:forward:0'>\
             <delay xmlns='urn:xmpp:delay' stamp='2010-07-10T23:00:01Z'/><message xmlns='jabber:client' "
        ),
        "{text}"
    );
    let (_, body) = text.split_once('\n').unwrap();
    let data = Element::parse(body.trim().as_bytes(), "").unwrap();
    let host = data.child("host", "urn:xmpp:pie:0").unwrap();
    let archive =
        host.child("user", "urn:xmpp:pie:0").unwrap().child("archive", "urn:xmpp:pie:0#mam").unwrap();
    assert_eq!(archive.children().count(), 2);
}

#[tokio::test]
async fn an_export_reads_a_bounded_part_at_a_time() {
    let world = world();
    world.fill(1..=1_000).await;
    world.storage.calls();
    let messages = export(&*world.storage, &jid(JULIET), &mut std::io::sink()).await.unwrap();
    let calls = world.storage.calls();
    let chunks = 1_000_usize.div_ceil(FULL as usize);
    assert_eq!((messages, calls.rows), (1_000, chunks));
    assert_eq!(calls.scans, chunks.div_ceil(16) + 1);
}

#[tokio::test]
async fn an_export_that_cannot_be_whole_is_an_error() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let world = world();
    world.fill([1]).await;
    let outcome = export(&*world.storage, &jid(JULIET), &mut Full).await;
    assert!(matches!(outcome, Err(ExportError::Output(_))));
    for address in ["capulet.example", BALCONY] {
        let outcome = export(&*world.storage, &jid(address), &mut std::io::sink()).await;
        assert!(matches!(outcome, Err(ExportError::NotAnAccount)), "{address}");
    }
    world.storage.fail_reads(1);
    let outcome = export(&*world.storage, &jid(JULIET), &mut std::io::sink()).await;
    assert!(matches!(outcome, Err(ExportError::Storage(_))));
}
