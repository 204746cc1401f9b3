package api

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"eboot"
)

// take reads the blobs of one request, as net/http or as a reader does.
func take(body io.Reader, plain bool, got map[eboot.Digest]int) error {
	var stream bytes.Buffer
	if plain {
		body = struct{ io.Reader }{body}
	}
	if _, err := io.Copy(&stream, body); err != nil {
		return err
	}
	return readBlobs(&stream, func(d eboot.Digest, size int64, content io.Reader) error {
		data, err := io.ReadAll(content)
		if err == nil && (eboot.DigestOf(data) != d || int64(len(data)) != size) {
			err = errors.New("another content")
		}
		got[d]++
		return err
	})
}

// Blobs that several goroutines put arrive whole, once each, across batches.
func TestUpload(t *testing.T) {
	for _, plain := range []bool{false, true} {
		got := map[eboot.Digest]int{}
		requests := 0
		u := newUpload(func(body io.ReadCloser) error {
			requests++
			return take(body, plain, got)
		})
		random := rand.New(rand.NewPCG(1, 2))
		var contents [][]byte
		want, size := map[eboot.Digest]int{}, int64(0)
		for n := range 200 {
			length := random.IntN(20_000)
			if n%50 == 0 {
				length = uploadBatch*(n/50) - blobHeaderSize*(n%3) // several batches, and ends on the edge of one
			}
			content := make([]byte, max(length, 0))
			for i := range content {
				content[i] = byte(random.Uint32())
			}
			contents = append(contents, content)
			want[eboot.DigestOf(content)]++
			size += int64(len(content))
		}
		var putters sync.WaitGroup
		for part := range slices.Chunk(contents, 50) {
			putters.Go(func() {
				for _, c := range part {
					if err := u.put(eboot.DigestOf(c), int64(len(c)), iotest.HalfReader(bytes.NewReader(c))); err != nil {
						t.Error(err)
					}
				}
			})
		}
		putters.Wait()
		if err := u.end(); err != nil {
			t.Fatal(err)
		}
		if requests != 1 || len(got) != len(want) || u.blobs != len(contents) || u.bytes != size {
			t.Errorf("%d requests; %d of %d blobs arrived; counted %d with %d bytes, want %d", requests, len(got), len(want), u.blobs, u.bytes, size)
		}
		if err := u.put(eboot.Digest{}, 0, strings.NewReader("")); err == nil {
			t.Error("a blob was taken after the end")
		}
	}
}

// A request ends when nothing comes for a while, at the end of a blob and with all
// that was put; the next blob begins another.
func TestUploadPausesBetweenBlobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := map[eboot.Digest]int{}
		var ends []time.Duration
		began := time.Now()
		u := newUpload(func(body io.ReadCloser) error {
			err := take(body, false, got)
			ends = append(ends, time.Since(began))
			return err
		})
		put := func(content io.Reader, whole string) {
			t.Helper()
			if err := u.put(eboot.DigestOf([]byte(whole)), int64(len(whole)), content); err != nil {
				t.Fatal(err)
			}
		}
		first := strings.Repeat("x", uploadBatch) // its end waits for the next batch to become full
		put(strings.NewReader(first), first)
		<-time.After(uploadIdle + time.Second) // of the bubble: no time passes
		second := strings.Repeat("y", 2*uploadBatch)
		pause := func() { <-time.After(3 * uploadIdle) } // within a blob
		put(io.MultiReader(strings.NewReader(second[:uploadBatch]), &pausing{pause: pause, Reader: strings.NewReader(second[uploadBatch:])}), second)
		if err := u.end(); err != nil {
			t.Fatal(err)
		}
		if len(got) != 2 || len(ends) != 2 || ends[0] != uploadIdle {
			t.Errorf("%d blobs, in requests that ended after %v", len(got), ends)
		}
	})
}

type pausing struct {
	io.Reader
	pause func()
}

func (p *pausing) Read(b []byte) (int, error) {
	if p.pause != nil {
		p.pause()
		p.pause = nil
	}
	return p.Reader.Read(b)
}

// What the server says ends the upload, and every put that waits; a content that
// fails is told as what it is, and nothing follows it.
func TestUploadFails(t *testing.T) {
	refused := errors.New("refused")
	u := newUpload(func(body io.ReadCloser) error {
		_, _ = io.CopyN(io.Discard, body, 10)
		return refused
	})
	var err error
	for err == nil {
		content := make([]byte, uploadBatch/2)
		err = u.put(eboot.DigestOf(content), int64(len(content)), bytes.NewReader(content))
	}
	if !errors.Is(err, refused) || !errors.Is(u.end(), refused) {
		t.Errorf("put after the server refused: %v", err)
	}

	broken := errors.New("broken")
	u = newUpload(func(body io.ReadCloser) error {
		_, err := io.Copy(io.Discard, body)
		return err
	})
	if err := u.put(eboot.Digest{}, 100, io.MultiReader(strings.NewReader("some"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("broken content: %v", err)
	}
	if err := u.put(eboot.DigestOf(nil), 0, strings.NewReader("")); !errors.Is(err, broken) {
		t.Errorf("a blob behind a broken one: %v", err)
	}
	if err := u.end(); !errors.Is(err, broken) {
		t.Errorf("end after a broken content: %v", err)
	}
	u = newUpload(func(io.ReadCloser) error { return nil })
	if err := u.put(eboot.Digest{}, 5, strings.NewReader("four")); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("short content: %v", err)
	}
	_ = u.end()
}

func FuzzHeld(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0xff, 0, 0, 1, 0, 0, 0, 2})
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		held, err := parseHeld(data)
		if (err == nil) != (len(data)%4 == 0) {
			t.Fatalf("%d bytes: %v", len(data), err)
		}
		o := &OpenPublish{held: held, few: true, wanted: map[eboot.Digest]bool{}}
		for ; err == nil && len(data) > 0; data = data[4:] {
			if o.Want(eboot.Digest(append(slices.Clone(data[:4]), make([]byte, 28)...))) {
				t.Errorf("%x is held, and wanted", data[:4])
			}
		}
		var d eboot.Digest
		if binary.BigEndian.PutUint32(d[:], 77); err == nil && !slices.Contains(held, 77) && (!o.Want(d) || o.Want(d)) {
			t.Error("what is not held is wanted once")
		}
	})
}
