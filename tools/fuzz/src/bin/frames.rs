#![no_main]

libfuzzer_sys::fuzz_target!(
    init: quorate_fuzz::seeds::write(&quorate_fuzz::seeds::frames()),
    |data: &[u8]| quorate_fuzz::frames::check(data)
);
