package agent

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// blobOf is a blob as it stands in an upload.
func blobOf(d eboot.Digest, size uint64, content string) []byte {
	return append(binary.BigEndian.AppendUint64(bytes.Clone(d[:]), size), content...)
}

// endless yields 64 MiB of the same again and again.
func endless(unit []byte) io.Reader {
	readers := []io.Reader{}
	block := bytes.Repeat(unit, 1+(1<<20)/len(unit))
	for range 64 {
		readers = append(readers, bytes.NewReader(block))
	}
	return io.MultiReader(readers...)
}

// TestHostileUploads: what a publisher, or somebody between it and the server, can do to an upload is
// refused, leaves no blob and no file, and takes little memory.
func TestHostileUploads(t *testing.T) { // alone: what others set aside would count
	c := settings(t)
	s := start(t, c)
	content := strings.Repeat("content", 100_000)
	d := eboot.DigestOf([]byte(content))
	whole := blobOf(d, uint64(len(content)), content)
	flipped := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	for name, body := range map[string]io.Reader{
		"a bit of the content":        bytes.NewReader(flipped(len(whole) / 2)),
		"the last bit":                bytes.NewReader(flipped(len(whole) - 1)),
		"a bit of the digest":         bytes.NewReader(flipped(0)),
		"a bit of the size":           bytes.NewReader(flipped(39)),
		"cut off":                     bytes.NewReader(whole[:len(whole)-1]),
		"cut off in a header":         bytes.NewReader(whole[:20]),
		"a small blob, a bit of it":   bytes.NewReader(blobOf(eboot.DigestOf([]byte("a")), 1, "b")),
		"more than was announced":     bytes.NewReader(blobOf(eboot.DigestOf([]byte("aa")), 1, "aa")),
		"announced and never sent":    bytes.NewReader(blobOf(d, eboot.MaxFileSize, "")),
		"larger than a file may be":   bytes.NewReader(blobOf(d, eboot.MaxFileSize+1, "x")),
		"the largest number":          bytes.NewReader(blobOf(d, 1<<64-1, "x")),
		"64 MiB of a blob of 4 GiB":   io.MultiReader(bytes.NewReader(blobOf(d, eboot.MaxFileSize, "")), endless([]byte("x"))),
		"64 MiB of wrong small blobs": endless(blobOf(d, 1, "x")),
		"64 MiB of zeros":             endless(make([]byte, 40+1)),
	} {
		opened, err := s.OpenPublish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var status int
		set := testutil.Allocated(func() { status = put(t, s.APIAddress()+"/v1/publishes/"+opened.ID+"/blobs", body) })
		if status < 400 || status >= 500 {
			t.Errorf("%s: status %d", name, status)
		}
		if set > 32<<20 { // the client and its transport included
			t.Errorf("%s: %d MiB set aside", name, set>>20)
		}
		if err := s.AbortPublish(opened.ID); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := s.store.Summary().Blobs; n != 0 {
			t.Errorf("%s: %d blobs are left", name, n)
		}
		if left, err := filepath.Glob(filepath.Join(c.DataDir, "store", "blobs", "*", "*")); err != nil || len(left) > 0 {
			t.Errorf("%s: %q are left, %v", name, left, err)
		}
	}
	open := s.openPublish(t)
	early(t, open, files{"good": content})
	if outcome, err := open.Publish(t.Context(), publishing("1")); err != nil || !outcome.Changed {
		t.Errorf("a good publish after all that: %+v, %v", outcome, err)
	}
}

// put sends a body and returns the status of the answer; 400 when the server has closed the connection.
func put(t *testing.T, url string, body io.Reader) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "PUT", url, body)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(r)
	if err != nil {
		t.Log(err)
		return http.StatusBadRequest
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Log(err)
	}
	return response.StatusCode
}
