#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| waystation_xml::fuzzing::xml_stream(data));
