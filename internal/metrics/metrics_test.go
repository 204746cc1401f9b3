package metrics

import (
	"io"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	compat "github.com/hashicorp/go-metrics/compat"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func scrape(t *testing.T, r *Registry) string {
	t.Helper()
	response := httptest.NewRecorder()
	r.Handler().ServeHTTP(response, httptest.NewRequest("GET", "/metrics", nil))
	body, err := io.ReadAll(response.Result().Body)
	if err != nil || response.Code != 200 {
		t.Fatalf("status %d, %v", response.Code, err)
	}
	return string(body)
}

func wantLine(t *testing.T, body, pattern string) {
	t.Helper()
	if !regexp.MustCompile("(?m)^" + pattern + "$").MatchString(body) {
		t.Errorf("no line %s in\n%s", pattern, body)
	}
}

func TestRegistry(t *testing.T) {
	r := New("1.2.3")
	boots, loading := 41.0, 7.0
	r.Counter("eboot_boots_total", "Boots begun.", func() float64 { return boots })
	r.Gauge("eboot_boots_loading", "Boots under way.", func() float64 { return loading })
	boots++
	body := scrape(t, r)
	for _, pattern := range []string{
		`eboot_build_info\{go_version="go[^"]+",version="1\.2\.3"\} 1`,
		`# HELP eboot_boots_total Boots begun\.`, `# TYPE eboot_boots_total counter`, `eboot_boots_total 42`,
		`# TYPE eboot_boots_loading gauge`, `eboot_boots_loading 7`,
		`go_goroutines \d+`, `process_open_fds \d+`,
	} {
		wantLine(t, body, pattern)
	}
	boots, loading = 43, 0
	body = scrape(t, r)
	wantLine(t, body, `eboot_boots_total 43`)
	wantLine(t, body, `eboot_boots_loading 0`)

	if other := scrape(t, New("x")); strings.Contains(other, "eboot_boots_total") {
		t.Error("two registries share their numbers")
	}
}

func TestNameTwicePanics(t *testing.T) {
	r := New("x")
	r.Gauge("eboot_a", "A.", func() float64 { return 0 })
	defer func() {
		if recover() == nil {
			t.Error("a name was taken twice")
		}
	}()
	r.Counter("eboot_a", "A.", func() float64 { return 0 })
}

// Both doors of go-metrics that the Raft libraries use end in the registry.
func TestCollectRaft(t *testing.T) {
	old := gometrics.Default()
	t.Cleanup(func() {
		if _, err := gometrics.NewGlobal(&old.Config, &gometrics.BlackholeSink{}); err != nil {
			t.Error(err)
		}
	})
	r := New("x")
	if err := r.CollectRaft(); err != nil {
		t.Fatal(err)
	}
	gometrics.IncrCounter([]string{"raft", "apply"}, 3)                                  // raft
	compat.SetGauge([]string{"raft", "boltdb", "freelistBytes"}, 5)                      // raft-boltdb
	gometrics.MeasureSince([]string{"raft", "commitTime"}, time.Now().Add(-time.Second)) // raft
	body := scrape(t, r)
	wantLine(t, body, `eboot_raft_apply 3`)
	wantLine(t, body, `eboot_raft_boltdb_freelistBytes 5`)
	wantLine(t, body, `eboot_raft_commitTime_count 1`)
	if strings.Contains(body, "eboot_runtime_") {
		t.Error("the runtime is counted twice")
	}
	if err := r.CollectRaft(); err == nil {
		t.Error("a second CollectRaft of one registry gives no error")
	}
}
