// Package beamfile reads the files in which Erlang keeps compiled modules: an IFF
// container, "FOR1" SIZE "BEAM", of chunks, each an id of four letters, a length and bytes that
// are padded to a multiple of four. Such a file may be compressed as a whole with gzip.
//
// CodeMD5 tells whether two of them hold the same code: a compiler writes where it ran and with
// what options, the debug information and the line numbers into chunks of their own, so that a
// module that was compiled anew, or stripped, has other bytes and does the same.
//
// Everything here is a function of bytes. No goroutine is started and nothing is kept.
package beamfile

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrFormat: the bytes are no BEAM file, or one beyond the limits.
var ErrFormat = errors.New("not a BEAM file")

// Limits of one file. The largest of OTP 25 and Elixir has 1 MB, and 15 chunks are many.
const (
	MaxSize   = 64 << 20 // bytes, unpacked
	maxChunks = 1000
)

// Chunk is one part of a file.
type Chunk struct {
	ID   string // four letters
	Data []byte // without the padding; points into the bytes that were read
}

// Chunks returns the parts of a BEAM file in their order, compressed or not. As beam_lib does it
// passes over the size in the head, and takes the file to end where its bytes do. The error is
// ErrFormat, with the reason.
func Chunks(file []byte) ([]Chunk, error) {
	data, err := unpack(file)
	if err != nil {
		return nil, err
	}
	if len(data) < 12 || string(data[:4]) != "FOR1" || string(data[8:12]) != "BEAM" {
		return nil, fmt.Errorf("no FOR1 and BEAM at the beginning: %w", ErrFormat)
	}
	var chunks []Chunk
	for rest := data[12:]; len(rest) > 0; {
		if len(rest) < 8 {
			return nil, fmt.Errorf("chunk %d: head cut off: %w", len(chunks)+1, ErrFormat)
		}
		if len(chunks) == maxChunks {
			return nil, fmt.Errorf("more than %d chunks: %w", maxChunks, ErrFormat)
		}
		id, size := string(rest[:4]), int64(binary.BigEndian.Uint32(rest[4:]))
		rest = rest[8:]
		if size > int64(len(rest)) {
			return nil, fmt.Errorf("chunk %q: %d of %d bytes are there: %w", id, len(rest), size, ErrFormat)
		}
		chunks = append(chunks, Chunk{ID: id, Data: rest[:size:size]})
		rest = rest[min((size+3)&^3, int64(len(rest))):] // the last may lack its padding
	}
	return chunks, nil
}

func unpack(file []byte) ([]byte, error) {
	if !bytes.HasPrefix(file, []byte{0x1f, 0x8b}) {
		if len(file) > MaxSize {
			return nil, fmt.Errorf("%d bytes, at most %d: %w", len(file), MaxSize, ErrFormat)
		}
		return file, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w: %w", err, ErrFormat)
	}
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("gzip: %w: %w", err, ErrFormat)
	case len(data) > MaxSize:
		return nil, fmt.Errorf("more than %d bytes, unpacked: %w", MaxSize, ErrFormat)
	}
	return data, nil
}

// code names the chunks that say what a module does, in the order in which beam_lib of OTP 25 and
// later sums them up, and whether every module has it. Atom is that of OTP before 20.
var code = []struct {
	id        string
	mandatory bool
}{
	{"Atom", false}, {"AtU8", false}, {"Code", true}, {"StrT", true}, {"ImpT", true}, {"ExpT", true}, {"FunT", false}, {"LitT", false}, {"Meta", false},
}

// CodeMD5 returns the name of the module in a BEAM file and the sum of its code, which is that of
// beam_lib:md5/1. The error is ErrFormat, with the reason.
func CodeMD5(file []byte) (module string, sum [md5.Size]byte, err error) {
	chunks, err := Chunks(file)
	if err != nil {
		return "", sum, err
	}
	byID := make(map[string][]byte, len(chunks))
	for _, c := range chunks {
		if _, twice := byID[c.ID]; twice {
			return "", sum, fmt.Errorf("chunk %q stands twice: %w", c.ID, ErrFormat)
		}
		byID[c.ID] = c.Data
	}
	if module, err = moduleName(byID); err != nil {
		return "", sum, err
	}
	h := md5.New()
	for _, part := range code {
		data, ok := byID[part.id]
		switch {
		case !ok && part.mandatory:
			return "", sum, fmt.Errorf("no chunk %q: %w", part.id, ErrFormat)
		case part.id == "FunT":
			data = withoutOldUniq(data)
		}
		_, _ = h.Write(data) // it never fails
	}
	h.Sum(sum[:0])
	return module, sum, nil
}

// moduleName is the first atom. Since OTP 28 a count below zero says that the length of each is
// an operand as in the code, one byte up to 15 and two above.
func moduleName(chunks map[string][]byte) (string, error) {
	atoms, isUTF8 := chunks["AtU8"]
	if !isUTF8 {
		atoms = chunks["Atom"]
	}
	if len(atoms) < 6 {
		return "", fmt.Errorf("no atoms: %w", ErrFormat)
	}
	long := int32(binary.BigEndian.Uint32(atoms)) < 0
	length, name := int(atoms[4]), atoms[5:]
	switch {
	case long && length&0x0f == 0:
		length >>= 4
	case long && length&0x1f == 0x08:
		length, name = length>>5<<8|int(name[0]), name[1:]
	case long:
		return "", fmt.Errorf("length of the first atom: %w", ErrFormat)
	}
	if length == 0 || length > len(name) {
		return "", fmt.Errorf("first atom of %d bytes: %w", length, ErrFormat)
	}
	name = name[:length]
	if isUTF8 {
		return string(name), nil
	}
	runes := make([]rune, len(name)) // Latin-1
	for i, c := range name {
		runes[i] = rune(c)
	}
	return string(runes), nil
}

// withoutOldUniq returns the table of funs with zeros for the last four bytes of each: compilers
// make a number of the text of the fun there.
func withoutOldUniq(table []byte) []byte {
	const head, entry = 4, 24
	out := bytes.Clone(table)
	for at := head; at+entry <= len(out); at += entry {
		clear(out[at+entry-4 : at+entry])
	}
	return out
}
