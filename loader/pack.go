package loader

import "eboot/bootproto/etf"

// Pack returns the external form of a binary with that content, compressed where that
// is shorter: what the loader unpacks with binary_to_term/1, without any code of zlib.
func Pack(content []byte) []byte {
	term := make([]byte, 0, len(content)+8)
	term = etf.AppendBinary(append(term, etf.Version), int64(len(content)))
	return etf.Deflate(append(term, content...))
}
