package filestore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"eboot"
)

// ingestUntilKilled is the child of TestKill: it publishes until somebody kills it.
func ingestUntilKilled(dir string) {
	s, err := Open(Options{Dir: dir, MinFree: -1})
	for n := 0; err == nil; n++ {
		in := s.Ingest()
		for k := range 1 + n%50 { // both ways of syncing
			content := bytes.Repeat([]byte(fmt.Sprintf("%d %d %d\n", os.Getpid(), n, k)), 1+rand.IntN(3000))
			if err = in.Put(context.Background(), eboot.DigestOf(content), int64(len(content)), bytes.NewReader(content)); err != nil {
				break
			}
		}
		if err == nil {
			err = in.Commit()
		}
		in.Close()
		if n == 0 {
			fmt.Println("ready")
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKill: kill -9 at any moment of an ingest leaves whole blobs only.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	for round := range 24 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "EBOOT_TEST_INGEST_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if n, err := out.Read(make([]byte, 6)); err != nil {
			t.Fatalf("child said nothing: %d, %v", n, err)
		}
		// The moment is what is random here: nothing is waited for.
		<-time.After(time.Duration(rand.IntN(30_000)) * time.Microsecond)
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("child ended by itself")
		}
		s := openStore(t, Options{Dir: dir})
		if left := leftovers(t, s); left != nil {
			t.Fatal(left)
		}
		blobs := 0
		for b := range 256 {
			entries, err := os.ReadDir(s.shardDir(byte(b)))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				content, err := os.ReadFile(s.shardDir(byte(b)) + "/" + e.Name())
				if err != nil {
					t.Fatal(err)
				}
				if d := eboot.DigestOf(content); d.String() != e.Name() || !s.Has(d) {
					t.Fatalf("round %d: %s is not whole", round, e.Name())
				}
				blobs++
			}
		}
		if blobs == 0 || blobs != s.Summary().Blobs {
			t.Fatalf("round %d: %d blobs, index says %d", round, blobs, s.Summary().Blobs)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
