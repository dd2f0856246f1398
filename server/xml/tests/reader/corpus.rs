//! Replays what the fuzzers started from and found: the files under fuzz/corpus.

use std::path::Path;

use waystation_xml::fuzzing;

/// Runs a fuzz target over its corpus. What must not panic must not panic.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        run(&std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count >= 30, "{count} files in {}", folder.display());
}

#[test]
fn xml_stream_corpus() {
    replay("xml_stream", fuzzing::xml_stream);
}

#[test]
fn xml_roundtrip_corpus() {
    replay("xml_roundtrip", fuzzing::xml_roundtrip);
}
