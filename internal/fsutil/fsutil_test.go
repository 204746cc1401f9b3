package fsutil_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"eboot"
	"eboot/internal/fsutil"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	put := func(text string, fail error) error {
		return fsutil.WriteAtomic(path, 0o640, func(w io.Writer) error {
			if _, err := io.WriteString(w, text); err != nil {
				return err
			}
			return fail
		})
	}
	if err := put("one", nil); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if err := put("two, cut off", broken); !errors.Is(err, broken) {
		t.Errorf("error = %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil || string(data) != "one" {
		t.Errorf("after a failed write: %q, %v", data, err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
	if err := put("three", nil); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() != 5 || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	if err := fsutil.WriteAtomic(filepath.Join(dir, "missing", "file"), 0o600, func(io.Writer) error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestRemoveTemporary(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"keep", ".keep", ".file.tmp-123"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := fsutil.RemoveTemporary(dir); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
}

func TestReadSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if content, err := fsutil.ReadSmall(path, 5); err != nil || string(content) != "12345" {
		t.Errorf("as long as it may be: %q, %v", content, err)
	}
	if _, err := fsutil.ReadSmall(path, 4); !errors.Is(err, eboot.ErrTooLarge) || !strings.Contains(err.Error(), path) {
		t.Errorf("longer: %v, want too large with the path", err)
	}
	if _, err := fsutil.ReadSmall("/dev/zero", 1<<16); !errors.Is(err, eboot.ErrTooLarge) {
		t.Errorf("a device without an end: %v, want too large", err)
	}
	if _, err := fsutil.ReadSmall(path+"x", 5); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
