package ingest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"eboot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var someTime = time.Unix(1_700_000_000, 0)

// script returns bytes that look like a boot script with these strings.
func script(paths ...string) string {
	out := []byte{131}
	for _, p := range paths {
		out = append(out, 107, byte(len(p)>>8), byte(len(p)))
		out = append(out, p...)
	}
	return string(out)
}

// entry is one entry of an archive in a test.
type entry struct {
	name string
	body string
	// header changes what is written, when set
	header func(*tar.Header)
}

func dirEntry(name string) entry {
	return entry{name: name, header: func(h *tar.Header) { h.Typeflag, h.Mode = tar.TypeDir, 0o755 }}
}

func link(name, target string) entry {
	return entry{name: name, header: func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeSymlink, target }}
}

func hardLink(name, target string) entry {
	return entry{name: name, header: func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeLink, target }}
}

func typed(name string, flag byte) entry {
	return entry{name: name, header: func(h *tar.Header) { h.Typeflag = flag }}
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o644, Size: int64(len(e.body)), ModTime: someTime}
		if e.header != nil {
			e.header(h)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%q: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstdFrame(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// good are the entries that make a good tree of any others.
func good(others ...entry) []entry {
	return append([]entry{
		{name: "releases/start_erl.data", body: "13.1.5 1.0"},
		{name: "releases/1.0/start.boot", body: script("$ROOT/lib")},
		{name: "lib/a", body: "content of a"},
	}, others...)
}

// openBytes opens an archive that stands in memory.
func openBytes(ctx context.Context, data []byte, opts Options) (*Source, error) {
	opts.Limits = opts.orDefault()
	file := struct {
		*bytes.Reader
		io.Closer
	}{bytes.NewReader(data), io.NopCloser(nil)}
	return openArchive(ctx, file, opts, &report{warning: opts.Warn})
}

func mustOpen(t testing.TB, path string, opts Options) *Source {
	t.Helper()
	s, err := Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustOpenBytes(t testing.TB, data []byte, opts Options) *Source {
	t.Helper()
	s, err := openBytes(t.Context(), data, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// goodDirectory is good as a directory.
func goodDirectory(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, e := range good() {
		writeFile(t, filepath.Join(dir, e.name), e.body)
	}
	return dir
}

func symlink(t testing.TB, target, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// wantError fails unless err wraps want and says every one of texts.
func wantError(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want one that is %q", err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

// listing writes the tree down, a line each, contents as they are delivered.
func listing(t testing.TB, s *Source) string {
	t.Helper()
	contents := collect(t, s)
	var out strings.Builder
	for _, e := range s.Manifest().Entries {
		switch e.Kind {
		case eboot.KindFile:
			exec := ""
			if e.Exec {
				exec = "*"
			}
			content, ok := contents[e.Digest]
			if !ok {
				t.Errorf("content of %q was not delivered", e.Path)
			}
			fmt.Fprintf(&out, "%s%s %q\n", e.Path, exec, content)
		case eboot.KindSymlink:
			fmt.Fprintf(&out, "%s -> %s\n", e.Path, e.Target)
		default:
			fmt.Fprintf(&out, "%s/\n", e.Path)
		}
	}
	return out.String()
}

// collect takes all blobs and checks each against its name.
func collect(t testing.TB, s *Source) map[eboot.Digest]string {
	t.Helper()
	got := map[eboot.Digest]string{}
	err := s.Blobs(t.Context(), func(eboot.Digest) bool { return true }, func(d eboot.Digest, size int64, r io.Reader) error {
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if _, twice := got[d]; twice {
			t.Errorf("blob %s came twice", d)
		}
		if int64(len(data)) != size || sha256.Sum256(data) != d {
			t.Errorf("blob %s: got %d bytes of other content, want %d", d, len(data), size)
		}
		got[d] = string(data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func identity(s *Source) eboot.Digest { return eboot.DigestOf(s.Manifest().Encode()) }
