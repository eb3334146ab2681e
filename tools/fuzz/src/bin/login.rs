#![no_main]

libfuzzer_sys::fuzz_target!(
    init: quorate_fuzz::seeds::write(&quorate_fuzz::seeds::login()),
    |data: &[u8]| quorate_fuzz::login::check(data)
);
