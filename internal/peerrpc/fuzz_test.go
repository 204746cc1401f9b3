package peerrpc

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/internal/testutil"
)

// posts are the calls of a server that carry something.
var posts = []string{
	"/v1/pins", "/v1/plans", "/v1/boots", "/v1/events", "/v1/restart", "/v1/copies", "/v1/transfer", "/v1/remove", "/v1/restore?force=true", "/v1/apply", "/v1/read-index",
}

// Whatever another server posts, it is taken whole or refused, within the bounds of what is taken
// and with memory in proportion.
func FuzzBodies(f *testing.F) {
	now := time.Unix(1_700_000_000, 0).UTC()
	slave := netip.MustParseAddr("10.1.2.3")
	bundle := eboot.Bundle{Name: "otp", Version: "25", ERTS: "13.1.5", Manifest: eboot.DigestOf([]byte("m")), BootScript: "bin/start.boot", Holders: []string{"a", "b"}, PublishedAt: now}
	for call, body := range map[uint8]any{
		0: []eboot.Pin{{Slave: slave, ERTS: "13.1.5", Manifest: bundle.Manifest, At: now}},
		1: []eboot.LearnedPlan{{PlanKey: eboot.PlanKey{Manifest: bundle.Manifest, Script: "bin/start.boot"}, Files: []eboot.PlanFile{{Path: "lib/a.beam", Size: 7}}}},
		2: []eboot.Boot{{BootRecord: eboot.BootRecord{ID: "a-1", Revision: 3}, Slave: slave, ERTS: "13.1.5", Cured: &eboot.CuredBoot{Number: 1 << 60}}},
		3: []eboot.Event{{ID: "a-2", At: now, Kind: eboot.EventBootFailed, Slave: slave, Text: "x"}},
		4: RestartRequest{Slave: slave, Number: 1 << 60},
		5: CopyRequest{From: "a", Bundles: []eboot.Bundle{bundle}},
		6: transferRequest{To: "b"},
		7: removeRequest{ID: "b", Replace: true},
	} {
		text, err := json.Marshal(body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(call, string(text))
	}
	f.Add(uint8(5), `{"bundles":`+empties(1000)+`}`)
	f.Add(uint8(2), `[{"phases":`+empties(1000)+`}]`)
	f.Add(uint8(8), "EBOOTSNP")
	f.Add(uint8(9), "\x01\x01{}")
	f.Fuzz(func(t *testing.T, call uint8, text string) {
		a := &answers{apply: func(entry []byte) ([]byte, error) { return entry, nil }}
		server := NewServer(ServerOptions{Answerer: a, Leader: a, Logger: hclog.NewNullLogger()})
		r := httptest.NewRequest("POST", posts[int(call)%len(posts)], strings.NewReader(text))
		w := httptest.NewRecorder()
		set := testutil.Allocated(func() { server.mux.ServeHTTP(w, r) })
		if set > uint64(1<<20+400*len(text)) {
			t.Errorf("%s: %d bytes set aside for %d", r.URL, set, len(text))
		}
		if w.Code != http.StatusOK && w.Code != http.StatusUnprocessableEntity {
			t.Errorf("%s answers %d", r.URL, w.Code)
		}
		taken := len(a.pins) + len(a.plans) + len(a.boots) + len(a.events)
		if taken > 0 && w.Code != http.StatusOK {
			t.Errorf("%s took %d of what it refused", r.URL, taken)
		}
		if len(a.pins) > maxPins || len(a.plans) > maxPlans || len(a.boots) > maxBoots || len(a.events) > maxEvents {
			t.Errorf("%s took %d", r.URL, taken)
		}
	})
}

// Found by reading: a task of 1 MiB could name 350,000 empty bundles, 100 MiB in memory, and one boot as
// many phases as its message has room for. 64 requests may be under way.
func TestEmptyValuesAreBounded(t *testing.T) {
	a := &answers{}
	server := NewServer(ServerOptions{Answerer: a, Leader: a, Logger: hclog.NewNullLogger()})
	for path, text := range map[string]string{
		"/v1/copies": `{"from":"a","bundles":` + empties(maxCopy/3-20) + `}`,
		"/v1/boots":  `[{"phases":` + empties(maxBootsJSON/3-20) + `}]`,
		"/v1/events": `[{"at":"2026-01-01T00:00:00Z","x":` + empties(maxBootsJSON/3-40) + `}]`,
	} {
		w := httptest.NewRecorder()
		set := testutil.Allocated(func() {
			server.mux.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(text)))
		})
		if w.Code != http.StatusUnprocessableEntity || !strings.Contains(w.Body.String(), "too_large") || set > 64<<20 {
			t.Errorf("%s: %d %s, and %d MiB were set aside", path, w.Code, w.Body, set>>20)
		}
	}
	if len(a.copied.Bundles)+len(a.boots)+len(a.events) > 0 {
		t.Error("something was taken")
	}
	many := CopyRequest{From: "a", Bundles: make([]eboot.Bundle, 32)}
	for i := range many.Bundles {
		many.Bundles[i] = eboot.Bundle{Name: "otp", Holders: make([]string, 7), Signatures: make([]eboot.Signature, eboot.MaxSignatures)}
	}
	text, err := json.Marshal(many)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	server.mux.ServeHTTP(w, httptest.NewRequest("POST", "/v1/copies", strings.NewReader(string(text))))
	if w.Code != http.StatusOK || len(a.copied.Bundles) != 32 {
		t.Errorf("32 bundles with all signatures: %d %s", w.Code, w.Body)
	}
}
