#![no_main]

libfuzzer_sys::fuzz_target!(
    init: quorate_fuzz::seeds::write(&quorate_fuzz::seeds::sql()),
    |data: &[u8]| quorate_fuzz::sql::check(data)
);
