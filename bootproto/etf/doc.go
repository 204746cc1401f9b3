// Package etf reads and writes as much of Erlang's external term format as the
// EBOOT file protocol and boot scripts need.
//
// A frame is one term: the version byte 131 and a tagged value. Decoder is a
// cursor over a frame. Each Token is one tag with what belongs to it; the
// elements of a tuple or a list are the tokens that follow. Token bytes point
// into the frame: nothing is copied and nothing is allocated. The functions
// named Append… write terms to the end of a slice.
//
// # What is read
//
// Tuples (104, 105), atoms (100, 115, 118, 119), integers (97, 98, 110),
// strings (107), lists (106, 108) and binaries (109): all that term_to_binary
// makes of a tuple of an atom and a file name, in any OTP release. Everything
// else is ErrMalformed, compressed terms (80) first of all, since their size in
// memory has nothing to do with their size in the frame. Values are nested at
// most MaxDepth deep, and a tuple or a list that claims more elements than bytes
// are left is refused before its first element is looked at.
//
// Boot scripts are an operator's, and hold terms of any kind. NextAny, Raw and
// AppendText read what term_to_binary makes in OTP 23 to 29, however deep, in
// bounded stack; Inflate reads the compressed form, with a limit.
//
// Bytes after the term are ignored, as erlang:binary_to_term/1 ignores them.
//
// # Names
//
// A file name is an Erlang string: a list of code points that may contain
// further lists. It arrives as STRING_EXT when all code points are below 256,
// else as LIST_EXT, and as NIL when it is empty. In Go a name is UTF-8. A zero
// code point, a surrogate, anything above U+10FFFF and anything that is not an
// integer makes the term no name (ErrName); erl_boot_server answers {error,badarg}
// to these, from prim_file:internal_name2native.
package etf
