package metrics

import (
	"fmt"
	"net/http"
	"runtime"

	gometrics "github.com/hashicorp/go-metrics"
	raftsink "github.com/hashicorp/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Registry is the set of numbers of one server.
type Registry struct {
	registry *prometheus.Registry
}

// New returns a Registry that has the numbers of the Go runtime and of the
// process, and eboot_build_info, which is always 1 and has version in a label.
func New(version string) *Registry {
	r := &Registry{registry: prometheus.NewRegistry()}
	r.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "eboot_build_info",
			Help:        "Always 1; the labels say which eboot this is.",
			ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version()},
		}, func() float64 { return 1 }),
	)
	return r
}

// Counter exposes a number that only rises, by convention named
// eboot_…_total. read is called at every scrape, by several goroutines at once,
// and must not block. A name that is taken or not a metric name is a
// mistake of the program, and panics.
func (r *Registry) Counter(name, help string, read func() float64) {
	r.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, read))
}

// Gauge exposes a number that rises and falls; see Counter.
func (r *Registry) Gauge(name, help string, read func() float64) {
	r.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
}

// CollectRaft takes in what hashicorp/raft and raft-boltdb count, as
// eboot_raft_…. Call it once, before Raft starts.
//
// It sets a global of the process: those libraries report to the package-level
// instance of go-metrics and accept no other, so there is no way to hand them this
// Registry. When a process runs several servers, as tests do, the numbers of all
// their Raft groups go to the Registry that called last.
func (r *Registry) CollectRaft() error {
	sink, err := raftsink.NewPrometheusSinkFrom(raftsink.PrometheusOpts{Registerer: r.registry, Name: "eboot_raft_sink"})
	if err != nil {
		return fmt.Errorf("register raft metrics: %w", err)
	}
	configuration := gometrics.DefaultConfig("eboot")
	configuration.EnableHostname = false       // Prometheus knows whom it asked
	configuration.EnableRuntimeMetrics = false // the Go collector has them, and nobody would end its goroutine
	if _, err := gometrics.NewGlobal(configuration, sink); err != nil {
		return fmt.Errorf("set raft metrics: %w", err)
	}
	return nil
}

// Handler answers a scrape. A number that cannot be read is left out, and the
// rest answered.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 8})
}
