package ingest

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
)

// sparseTar is a good archive with a file of GNU's old sparse format, all hole.
func sparseTar(t *testing.T, size int64) []byte {
	t.Helper()
	data := makeTar(t, good(entry{name: "holes"})...)
	at := bytes.Index(data, []byte("holes\x00"))
	h := data[at : at+512]
	h[156] = tar.TypeGNUSparse
	copy(h[257:], "ustar  \x00")
	octal := func(field []byte, v int64) {
		for i := len(field) - 2; i >= 0; i-- {
			field[i] = byte('0' + v&7)
			v >>= 3
		}
		field[len(field)-1] = 0
	}
	octal(h[386:398], size) // one fragment of no bytes, at the end
	octal(h[398:410], 0)
	octal(h[483:495], size) // the real size
	copy(h[148:156], "        ")
	var sum int64
	for _, b := range h {
		sum += int64(b)
	}
	octal(h[148:155], sum)
	h[155] = ' '
	return data
}

// paxSparseTar is a good archive with a file of size bytes in the sparse format 1.0 of PAX, all hole.
func paxSparseTar(t *testing.T, size string) []byte {
	t.Helper()
	body := "1\n8388608\n0\n" // one fragment of no bytes
	data := makeTar(t, good(entry{name: "holes", body: body + strings.Repeat("\x00", 512-len(body)), header: func(h *tar.Header) {
		h.PAXRecords = map[string]string{"VEN.sparse.major": "1", "VEN.sparse.minor": "0", "VEN.sparse.name": "holes", "VEN.sparse.realsize": size}
	}})...)
	return bytes.ReplaceAll(data, []byte("VEN.sparse."), []byte("GNU.sparse."))
}
