package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/filestore"
	"eboot/ingest"
)

// How often the server is killed: a few times in every run, the full count in
// `make acceptance`.
func kills(t testing.TB) int {
	if os.Getenv("EBOOT_TEST_ACCEPTANCE") != "" {
		return 40
	}
	return 6
}

// TestAcceptancePublishSurvivesKill kills the server at moments spread over a whole
// publish. After each: the store holds only whole blobs, the bundle is there entirely
// or not at all, and the same publish works.
func TestAcceptancePublishSurvivesKill(t *testing.T) {
	tree := t.TempDir()
	makeRelease(t, tree)
	address := takeAddress(t)

	// One publish without a kill says how long it takes here.
	server := startProcess(t, address, t.TempDir())
	began := time.Now()
	if err := publishStreaming(t.Context(), server.Client, tree); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	server.Kill()

	n := kills(t)
	var visible, absent int
	for i := range n + 1 {
		dir := t.TempDir()
		after := whole * time.Duration(2*i+1) / time.Duration(2*n)
		if i == n {
			after = time.Minute // killed as soon as it was acknowledged
		}
		if publishAndKill(t, address, dir, tree, after) {
			visible++
		} else {
			absent++
		}
	}
	if absent == 0 || visible == 0 {
		t.Errorf("the bundle was visible after %d kills, absent after %d: the kills did not fall across a publish of %s", visible, absent, whole)
	}
	t.Logf("an undisturbed publish took %s; killed %d times across it: the bundle was visible after %d, absent after %d; every store held only whole blobs, every repeat worked", whole, n+1, visible, absent)
}

// publishAndKill reports whether the bundle was visible after the restart.
func publishAndKill(t *testing.T, address, dir string, tree string, after time.Duration) bool {
	t.Helper()
	server := startProcess(t, address, dir)
	done := make(chan error, 1)
	go func() { done <- publishStreaming(t.Context(), server.Client, tree) }()
	acknowledged := false
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("publish failed before the kill: %v", err)
		}
		acknowledged = true
		server.Kill()
	case <-time.After(after):
		server.Kill()
		acknowledged = <-done == nil
	}

	checkStore(t, dir)
	server = startProcess(t, address, dir)
	defer server.Kill()
	ref := eboot.Ref{Name: "app", Version: "1"}
	details, err := server.Client.Bundle(t.Context(), ref)
	visible := err == nil
	switch {
	case err != nil && !errors.Is(err, eboot.ErrNotFound):
		t.Fatal(err)
	case err != nil && acknowledged:
		t.Errorf("killed after %s: the publish was acknowledged and is gone", after)
	case visible && len(details) != 1:
		t.Errorf("killed after %s: %d bundles", after, len(details))
	case visible:
		if result, err := server.Client.VerifyBundle(t.Context(), ref, nil); err != nil || !result.OK() {
			t.Errorf("killed after %s: the bundle is visible and not whole: %+v, %v", after, result, err)
		}
	}
	if err := publishStreaming(t.Context(), server.Client, tree); err != nil {
		t.Errorf("killed after %s: the same publish again: %v", after, err)
	}
	if result, err := server.Client.VerifyBundle(t.Context(), ref, nil); err != nil || !result.OK() {
		t.Errorf("killed after %s: after the repeat: %+v, %v", after, result, err)
	}
	return visible
}

// publishStreaming publishes as the command line does: blobs travel while the tree is read.
func publishStreaming(ctx context.Context, client *api.Client, tree string) error {
	open, err := client.OpenPublish(ctx)
	if err != nil {
		return err
	}
	defer open.Close()
	source, err := ingest.Open(ctx, tree, ingest.Options{Want: open.Want, Put: open.Put})
	if err != nil {
		return err
	}
	defer source.Close()
	found := source.Found()
	_, err = open.Publish(ctx, api.Publish{
		Ref: eboot.Ref{Name: "app", Version: "1"}, ERTS: found.ERTS, BootScript: found.BootScript, SysConfig: found.SysConfig,
		Channel: eboot.DefaultChannel, Source: source,
	})
	return err
}

// checkStore hashes every file in the store of a server that is not running.
func checkStore(t *testing.T, dataDir string) {
	t.Helper()
	dir := filepath.Join(dataDir, "store")
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	const unfinished = "unfinished-"
	for _, file := range files {
		if strings.HasPrefix(filepath.Base(file), unfinished) {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := eboot.DigestOf(data).String(); got != filepath.Base(file) {
			t.Errorf("%s holds %d bytes with digest %s", file, len(data), got)
		}
	}
	store, err := filestore.Open(filestore.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "*", unfinished+"*")); len(left) > 0 {
		t.Errorf("%d temporary files survive a start", len(left))
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// makeRelease writes a tree that looks like a release: many small files, a few large.
func makeRelease(t *testing.T, dir string) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	content := func(n int) string {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		return string(data)
	}
	write(t, filepath.Join(dir, "releases", "start_erl.data"), "13.1.5 1\n")
	write(t, filepath.Join(dir, "releases", "1", "start.boot"), "script")
	for i := range 400 {
		write(t, filepath.Join(dir, "lib", fmt.Sprintf("app%d-1", i%20), "ebin", fmt.Sprintf("m%d.beam", i)), content(2000+random.IntN(60_000)))
	}
	for i := range 3 {
		write(t, filepath.Join(dir, "lib", "app0-1", "priv", fmt.Sprintf("large%d", i)), content(4_000_000))
	}
}
