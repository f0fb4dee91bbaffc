//! Reads a C header through libclang, with the compiler's own headers, as the bindings of RocksDB
//! are made.

fn main() {
    let header = "#include <stddef.h>\n#include <stdint.h>\nsize_t probe(uint64_t);\n";
    let bindings = bindgen::Builder::default().header_contents("probe.h", header).generate();
    let text = bindings.expect("libclang reads a header").to_string();
    assert!(text.contains("pub fn probe"), "{text}");
    println!("libclang reads a header");
}
