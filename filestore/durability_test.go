package filestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"eboot"
)

// numbered are n contents whose digests are the same in every process.
func numbered(n int) (contents [][]byte) {
	for k := range n {
		contents = append(contents, fmt.Appendf(nil, "content %d", k))
	}
	return contents
}

// commitNumbered is the child of runCommit: it commits n blobs, Put as long ago as age
// says, and prints how that ended, and how many of them are visible.
func commitNumbered(dir, n, age string) {
	// strace counts the calls that are to fail by thread.
	runtime.LockOSThread()
	count, err := strconv.Atoi(n)
	if err != nil {
		fmt.Println(err)
		return
	}
	ago, err := time.ParseDuration(age)
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := Open(Options{Dir: dir, MinFree: -1})
	if err != nil {
		fmt.Println(err)
		return
	}
	in := s.Ingest()
	contents := numbered(count)
	for _, c := range contents {
		if err := in.Put(context.Background(), eboot.DigestOf(c), int64(len(c)), bytes.NewReader(c)); err != nil {
			fmt.Println(err)
			return
		}
	}
	for d, p := range in.pending {
		p.began = p.began.Add(-ago)
		in.pending[d] = p
	}
	err = in.Commit()
	visible := 0
	for _, c := range contents {
		if s.Has(eboot.DigestOf(c)) {
			visible++
		}
	}
	fmt.Printf("visible: %d, input/output error: %t, any error: %t\n", visible, errors.Is(err, syscall.EIO), err != nil)
}

// runCommit commits n blobs of that age to dir in a process under strace, and returns
// what it printed and its system calls.
func runCommit(t *testing.T, dir string, n int, age time.Duration, options ...string) (printed, calls string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace on PATH")
	}
	trace := filepath.Join(t.TempDir(), "trace")
	// A file for each thread: else a signal in one cuts the calls of others in two.
	args := append([]string{"-f", "-ff", "-qq", "-y", "-o", trace}, options...)
	cmd := exec.Command(strace, append(args, os.Args[0])...)
	cmd.Env = append(os.Environ(), "EBOOT_TEST_COMMIT_DIR="+dir, fmt.Sprint("EBOOT_TEST_COMMIT_BLOBS=", n), fmt.Sprint("EBOOT_TEST_COMMIT_AGE=", age))
	out, err := cmd.CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("ptrace")) || bytes.Contains(out, []byte("Operation not permitted")) {
			t.Skipf("strace may not trace: %s", out)
		}
		t.Fatalf("%v: %s", err, out)
	}
	files, err := filepath.Glob(trace + ".*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		part, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		calls += string(part)
	}
	return string(out), calls
}

var (
	syncCall   = regexp.MustCompile(`^(fsync|fdatasync|syncfs)\(\d+<(.*)>\) += 0$`)
	renameCall = regexp.MustCompile(`^rename(?:at2?)?\(.*"(.*)",.*"(.*)".*\) += 0$`)
)

// TestCommitIsDurable: the contents are on the disk before the first of them gets
// its name, and the names before Commit returns.
func TestCommitIsDurable(t *testing.T) {
	for _, n := range []int{3, 50} { // each by itself, and all at once
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			printed, calls := runCommit(t, dir, n, 0, "-e", "trace=fsync,fdatasync,syncfs,rename,renameat,renameat2")
			if want := fmt.Sprintf("visible: %d, input/output error: false, any error: false\n", n); printed != want {
				t.Fatalf("printed %q, want %q", printed, want)
			}
			var before, after []string // what is synced before the first rename and after the last
			var sources, shards []string
			for line := range strings.Lines(calls) {
				line = strings.TrimSpace(line)
				if m := renameCall.FindStringSubmatch(line); m != nil {
					sources = append(sources, m[1])
					shards = append(shards, filepath.Dir(m[2]))
					before, after = append(before, after...), nil
				} else if m := syncCall.FindStringSubmatch(line); m != nil {
					synced := m[2]
					if m[1] == "syncfs" {
						synced = "all"
					}
					after = append(after, synced)
				} else if line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "+++") {
					t.Errorf("a call that failed, or that this test does not know: %s", line)
				}
			}
			if len(sources) != n {
				t.Fatalf("%d renames, want %d:\n%s", len(sources), n, calls)
			}
			first := strings.Index(calls, "rename")
			last := strings.LastIndex(calls, "rename")
			if between := regexp.MustCompile(`(?m)^(fsync|fdatasync|syncfs)`).FindString(calls[first:last]); between != "" {
				t.Errorf("%s between renames:\n%s", between, calls)
			}
			if !slices.Contains(before, "all") {
				for _, file := range sources {
					if !slices.Contains(before, file) {
						t.Errorf("%s is not synced before the first rename", file)
					}
				}
			}
			slices.Sort(shards)
			want := slices.Compact(shards)
			if len(want) > syncEach {
				want = []string{"all"}
			}
			slices.Sort(after)
			if !slices.Equal(after, want) {
				t.Errorf("synced after the last rename: %v, want %v", after, want)
			}
		})
	}
}

// TestCommitIsUndone: when the disk fails while names or contents are made durable,
// nothing becomes visible, to this process or to the next, and nothing is left.
func TestCommitIsUndone(t *testing.T) {
	for name, tt := range map[string]struct {
		blobs   int
		age     time.Duration
		call    string
		on      func(dir string, d eboot.Digest) string // what the call that fails is about
		failing int
	}{
		"Contents":        {3, 0, "fsync", func(dir string, d eboot.Digest) string { return fmt.Sprintf("%s/blobs/%02x/unfinished-2", dir, d[0]) }, 1},
		"ContentsAtOnce":  {50, 0, "syncfs", func(dir string, _ eboot.Digest) string { return dir + "/blobs" }, 1},
		"ContentsLongAgo": {3, time.Minute, "syncfs", func(dir string, _ eboot.Digest) string { return dir + "/blobs" }, 1},
		"Directory":       {3, 0, "fsync", func(dir string, d eboot.Digest) string { return fmt.Sprintf("%s/blobs/%02x", dir, d[0]) }, 1},
		"DirectoryAtOnce": {50, 0, "syncfs", func(dir string, _ eboot.Digest) string { return dir + "/blobs" }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			s := openStore(t, Options{Dir: dir}) // makes the directories: strace wants them to be there
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			contents := numbered(tt.blobs)
			printed, calls := runCommit(t, dir, tt.blobs, tt.age, "-P", tt.on(dir, eboot.DigestOf(contents[1])),
				"-e", "trace="+tt.call, "-e", fmt.Sprintf("inject=%s:error=EIO:when=%d", tt.call, tt.failing))
			if !strings.Contains(calls, "INJECTED") {
				t.Fatalf("no call failed: %s", calls)
			}
			if want := "visible: 0, input/output error: true, any error: true\n"; printed != want {
				t.Errorf("printed %q, want %q", printed, want)
			}
			blobs, err := filepath.Glob(dir + "/blobs/*/*")
			if err != nil {
				t.Fatal(err)
			}
			if len(blobs) != 0 {
				t.Errorf("files in the store: %v", blobs)
			}
			s = openStore(t, Options{Dir: dir})
			put(t, s, contents...)
			for _, c := range contents {
				if got, err := read(s, eboot.DigestOf(c), len(c)); err != nil || !bytes.Equal(got, c) {
					t.Fatalf("put again: %q, %v", got, err)
				}
			}
		})
	}
}

// TestCommitIsUndoneAfterARename does it with a name that is taken, which needs no
// failing disk.
func TestCommitIsUndoneAfterARename(t *testing.T) {
	s := openStore(t, Options{})
	contents := numbered(10)
	digests := make([]eboot.Digest, 0, len(contents))
	in := s.Ingest()
	defer in.Close()
	for _, c := range contents {
		digests = append(digests, eboot.DigestOf(c))
		if err := in.Put(t.Context(), eboot.DigestOf(c), int64(len(c)), bytes.NewReader(c)); err != nil {
			t.Fatal(err)
		}
	}
	last := slices.MaxFunc(digests, func(a, b eboot.Digest) int { return bytes.Compare(a[:], b[:]) })
	if err := os.Mkdir(s.path(last), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err == nil {
		t.Fatal("committed over a directory")
	}
	for _, d := range digests {
		if info, err := os.Lstat(s.path(d)); s.Has(d) || err == nil && info.Mode().IsRegular() {
			t.Errorf("%s is still there: %v", d, err)
		}
	}
	if left := leftovers(t, s); left != nil {
		t.Error(left)
	}
}
