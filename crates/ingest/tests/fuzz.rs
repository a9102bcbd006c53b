//! The decoders on inputs that are almost right: they never panic, account for every event, and take
//! what is right. `HIGHWATER_FUZZ` sets how many inputs, `HIGHWATER_SEED` the first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod decoding;

use highwater_event::SeededRandomness;
use highwater_ingest::Format;
use highwater_ingest::decode::Decoder;
use highwater_sim::{mutate, setting};

const JSON: &str = r#"[{"id":"a","at":"2026-01-01T00:00:00Z","n":1,"small":-3,"f":1.5e3,"d":12.34,"ok":true,"day":"2026-01-01","any":{"x":[1,{"y":null}]},"place":{"city":"Züri\n","zip":8000},"tags":["p","q",null],"map":{"k":1,"l":null},"extra":"é"},
{"id":"b","at":1767225600000,"d":"0.10","tags":[],"map":{}}]"#;
const CSV: &str = "id,at,n,small,f,d,ok,day,any,place,tags,map,extra\na,2026-01-01,1,-3,1.5,12.34,true,2026-01-01,\"{\"\"x\"\":1}\",\"{\"\"city\"\":\"\"Z\"\"}\",\"[\"\"p\"\"]\",\"{\"\"k\"\":1}\",é\nb,,,,,,,,,,,,\n";
const CLOUD: &str = r#"[{"specversion":"1.0","id":"a","source":"/s","type":"t","time":"2026-01-01T00:00:00Z","subject":"x","ext":5,"data":{"n":1,"d":1.10}},{"specversion":"1.0","id":"b","source":"/s","type":"t","data_base64":"AA=="}]"#;

#[test]
fn decoders_never_panic_and_account_for_every_event() {
    let (seed, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_FUZZ", 40_000));
    println!("seed {seed}, {count} inputs");
    let chance = SeededRandomness::new(seed);
    let decoder = Decoder::new(decoding::schema()).unwrap();
    let lines = JSON.trim_matches(['[', ']']).replace("},\n{", "}\n{");
    let (mut good, mut bad, mut refused) = (0, 0, 0);
    for number in 0..count {
        let (format, text) = match number % 4 {
            0 => (Format::Json, JSON),
            1 => (Format::NdJson, lines.as_str()),
            2 => (Format::Csv, CSV),
            _ => (Format::CloudEvents, CLOUD),
        };
        let mut body = text.as_bytes().to_vec();
        mutate(&mut body, &chance);
        let verdicts = decoding::check(&decoder, &body, format);
        good += verdicts.good;
        bad += verdicts.bad;
        refused += u64::from(verdicts.refused);
    }
    println!("{good} events taken, {bad} refused, {refused} bodies refused as a whole");
    assert!(good > 0 && bad > 0 && refused > 0);
}
