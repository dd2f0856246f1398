//! No text, however broken, does more than give problems.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use proptest::prelude::*;
use waystation_config::{Sources, load};

proptest! {
    #[test]
    fn any_argument_is_answered(text in "(limits|tls|log)?[.=\"'\\[\\]{}a-z0-9ü \n-]{0,40}") {
        let _ = load(&Sources { set: vec![text], ..Sources::default() }).map_err(|error| error.to_string());
    }

    #[test]
    fn any_file_is_answered(text in "(\\PC|[\n\r\t\\[\\]=\"'#.]|hosts|tls|limits|=|1|\"a\"){0,60}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.toml");
        std::fs::write(&path, text).unwrap();
        let sources = Sources { file: Some(path), ..Sources::default() };
        let _ = load(&sources).map_err(|error| error.to_string());
    }
}
