//! CRC-32C (Castagnoli), the checksum in RocksDB's write-ahead log.
//!
//! Needed only to look at the log's records from outside, so that plain tables are fast enough.

const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `TABLES[n][byte]`: what `byte` does to the checksum when `n` bytes follow it.
static TABLES: [[u32; 256]; 8] = tables();

/// The checksum of the concatenated parts.
pub(super) fn checksum(parts: [&[u8]; 2]) -> u32 {
    !parts.iter().fold(!0, |crc, part| extend(crc, part))
}

/// The form in which RocksDB stores a checksum, because a checksum of data that contains
/// checksums is a weak one.
pub(super) const fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn extend(mut crc: u32, bytes: &[u8]) -> u32 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        let word = u64::from_le_bytes(*chunk) ^ u64::from(crc);
        crc = (0..8).fold(0, |crc, at| crc ^ TABLES[7 - at][(word >> (8 * at)) as usize & 0xff]);
    }
    for byte in rest {
        crc = (crc >> 8) ^ TABLES[0][(crc ^ u32::from(*byte)) as usize & 0xff];
    }
    crc
}

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut row = 1;
    while row < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[row - 1][byte];
            tables[row][byte] = (crc >> 8) ^ tables[0][crc as usize & 0xff];
            byte += 1;
        }
        row += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_check_values_come_out() {
        assert_eq!(checksum([b"123456789", b""]), 0xe306_9283);
        assert_eq!(checksum([&[0; 32], b""]), 0x8a91_36aa);
        assert_eq!(checksum([&[0xff; 32], b""]), 0x62a8_ab43);
    }

    #[test]
    fn the_parts_count_as_one() {
        for at in 0..9 {
            let (head, tail) = b"123456789".split_at(at);
            assert_eq!(checksum([head, tail]), 0xe306_9283);
        }
    }
}
