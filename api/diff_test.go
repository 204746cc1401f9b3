package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"eboot"
)

// diffAnswers compares bundles for ERTS 15.0 only.
type diffAnswers struct {
	Backend
	fresh int
}

func (b *diffAnswers) Fresh(context.Context) error {
	b.fresh++
	return nil
}

func (b *diffAnswers) DiffBundles(_ context.Context, from, to eboot.Ref, erts string) (BundleDiff, error) {
	if erts != "15.0" {
		return BundleDiff{}, fmt.Errorf("ERTS %q: %w", erts, eboot.ErrInvalid)
	}
	return BundleDiff{
		From: from, To: to, ERTS: erts,
		Applications: []ApplicationDiff{{Name: "a", Change: Changed, From: "1", To: "2", Modules: []ModuleDiff{{Module: "m", Change: Added}}, Recompiled: 3}},
		Files:        []FileDiff{{Path: "lib/a-1/priv/x", Change: Removed}},
		Recompiled:   4,
		BootScript:   BootScriptDiff{From: "releases/1/start.boot", To: "releases/2/start.boot", Changed: true, Lines: []string{"+ {x}"}},
	}, nil
}

func TestDiffBundlesCrossesTheWire(t *testing.T) {
	backend := &diffAnswers{}
	server := httptest.NewServer(NewServer(ServerOptions{Backend: backend, Metrics: http.NotFoundHandler(), Logger: hclog.NewNullLogger()}).handler(DoorInsecure))
	defer server.Close()
	client, err := NewClient(ClientOptions{Addresses: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	from, to := eboot.Ref{Name: "app", Version: "1+x"}, eboot.Ref{Name: "app", Version: "2~y"}
	want, _ := backend.DiffBundles(t.Context(), from, to, "15.0")
	got, err := client.DiffBundles(t.Context(), from, to, "15.0")
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	if backend.fresh != 1 {
		t.Error("bundles were compared although they may be older than what was acknowledged")
	}
	if _, err := client.DiffBundles(t.Context(), from, to, ""); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("without an ERTS version: %v", err)
	}
	for _, bad := range [][2]eboot.Ref{{from, {Name: "/"}}, {{Name: "/"}, to}} {
		if _, err := client.DiffBundles(t.Context(), bad[0], bad[1], "15.0"); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestBundleDiffSame(t *testing.T) {
	if d := (BundleDiff{Recompiled: 7}); !d.Same() {
		t.Error("modules that were only compiled anew are no difference")
	}
	for name, d := range map[string]BundleDiff{
		"application": {Applications: make([]ApplicationDiff, 1)},
		"file":        {Files: make([]FileDiff, 1)},
		"boot script": {BootScript: BootScriptDiff{Changed: true}},
		"sys.config":  {SysConfigChanged: true},
	} {
		if d.Same() {
			t.Errorf("%s: no difference", name)
		}
	}
}
