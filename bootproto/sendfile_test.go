package bootproto

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// traced runs a test in a process under strace and returns its calls of one
// system call.
func traced(t *testing.T, call, test string) []byte {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace on PATH")
	}
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-qq", "-e", "trace="+call, "-o", trace, os.Args[0], "-test.run=^"+test+"$")
	if out, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("ptrace")) || bytes.Contains(out, []byte("Operation not permitted")) {
			t.Skipf("strace may not trace: %s", out)
		}
		t.Fatalf("%v: %s", err, out)
	}
	calls, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

// TestListenQueue: the queue has the length that ListenFiles asks for, whatever
// the net package asked for before.
func TestListenQueue(t *testing.T) {
	calls := traced(t, "listen", "TestListenErrors")
	lengths := regexp.MustCompile(`(?m)listen\(\d+, (\d+)\) += 0$`).FindAllSubmatch(calls, -1)
	// TestListenErrors listens to one port: for the net package, and for us.
	if len(lengths) != 2 || string(lengths[1][1]) != "4096" {
		t.Errorf("want two calls of listen, the second for a queue of 4096:\n%s", calls)
	}
}

// TestSendfile runs TestContent under strace: the files in it must be sent by
// sendfile(2).
func TestSendfile(t *testing.T) {
	calls := traced(t, "sendfile", "TestContent")
	sent := 0
	for _, match := range regexp.MustCompile(`(?m)sendfile.* = (\d+)$`).FindAllSubmatch(calls, -1) {
		n, err := strconv.Atoi(string(match[1]))
		if err != nil {
			t.Fatal(err)
		}
		sent += n
	}
	if sent < 3<<20 {
		t.Errorf("sendfile sent %d bytes, want more than 3 MiB\n%s", sent, calls)
	}
}

// TestSlowReaderOfAFile lets the progress deadline pass several times in the
// middle of a file that the kernel sends.
func TestSlowReaderOfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "content")
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	files := newTree()
	files.open = func(string) (io.ReadCloser, int64, error) {
		file, err := os.Open(path)
		return file, int64(len(content)), err
	}
	const progress, pause = 500 * time.Millisecond, 50 * time.Millisecond
	_, addr := startFiles(t, FileServerOptions{Host: files, ProgressTimeout: progress})
	conn := dial(t, addr)
	if err := conn.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	send(t, conn, ask("get", "/content"))
	var got bytes.Buffer
	want := append(appendContentHeader(nil, int64(len(content))), content...)
	for piece := int64(512 << 10); int64(got.Len()) < int64(len(want)); {
		if _, err := io.CopyN(&got, conn, min(piece, int64(len(want)-got.Len()))); err != nil {
			t.Fatalf("%v after %d bytes", err, got.Len())
		}
		<-time.After(pause)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Error("the content differs")
	}
}
