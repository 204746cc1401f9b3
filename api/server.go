package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"

	"eboot"
)

// Headers of a write.
const (
	headerRequestID        = "Idempotency-Key"
	headerExpectGeneration = "Eboot-Expect-Generation"
)

// headerStale stands in a reply that may be older than what was acknowledged; its
// value says why.
const headerStale = "Eboot-Stale"

const (
	maxValues       = 1 << 17 // in a JSON body; an entry of the whitelist with two labels has six
	maxBody         = 4 << 20 // JSON bodies; publishes and snapshots have limits of their own
	maxSnapshotBody = 1 << 30
)

// ServerOptions are what a Server needs.
type ServerOptions struct {
	Backend Backend
	Keeper  Gatekeeper
	Metrics http.Handler // answers /metrics
	Logger  hclog.Logger
	// Live answers /livez: nil means alive. An error is a server that must be restarted.
	Live func() error
}

// Server is the admin API of one server. Active: NewServer starts nothing.
type Server struct {
	options   ServerOptions
	backend   Backend
	logger    hclog.Logger
	refused   *refused
	heartbeat time.Duration // of streams
}

// NewServer returns a server that does nothing until Serve.
func NewServer(o ServerOptions) *Server {
	return &Server{
		options: o, backend: o.Backend, logger: o.Logger, heartbeat: heartbeat,
		refused: &refused{seldom: rate.Sometimes{First: refusalsLogged, Interval: refusalsPause}},
	}
}

// Serve answers on ln, which is one door, until ctx ends, then waits at most five seconds
// for requests under way and cuts the rest off. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener, door Door) error {
	return Serve(ctx, ln, s.handler(door), 5*time.Second, s.logger)
}

// handler answers requests that come through a door.
func (s *Server) handler(door Door) http.Handler {
	a := access{keeper: s.options.Keeper, door: door}
	mux := http.NewServeMux()
	for _, route := range s.routes() {
		mux.HandleFunc(route.pattern, s.handle(a, route))
	}
	return s.guard(a, mux)
}

// Serve has handler answer on ln until ctx ends, then waits for requests under way and
// cuts off those that last longer than wait. It closes ln.
func Serve(ctx context.Context, ln net.Listener, handler http.Handler, wait time.Duration, logger hclog.Logger) error {
	// Requests under way are not cut off by ctx, only by the end of the wait;
	// streams, which would never end, are.
	base, cut := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), streamsEnd{}, ctx))
	defer cut()
	var running sync.RWMutex // read-locked by each request
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			running.RLock()
			defer running.RUnlock()
			handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		// It would answer "OPTIONS *" to everybody, and wait for a body as long as it takes.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	err := server.Shutdown(waiting)
	if err != nil {
		cut()
		err = errors.Join(server.Close(), within(wait, &running))
	}
	<-served
	return err
}

// within waits for requests that were cut off: they may still use what the caller is
// about to close.
func within(limit time.Duration, running *sync.RWMutex) error {
	ended := make(chan struct{})
	go func() {
		running.Lock()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("requests that were cut off have not ended within %v: %w", limit, eboot.ErrTimeout)
	}
}

// streamsEnd is the key of the context with which streams have to end.
type streamsEnd struct{}

// streamContext is that of a request whose reply goes on until somebody stops.
func streamContext(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	serving, ok := ctx.Value(streamsEnd{}).(context.Context)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(serving, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// guard refuses requests that a browser was talked into sending: where nothing need be shown,
// a loopback address alone does not keep web pages out. Whoever comes through another door
// is known before it hears what there is.
func (s *Server) guard(a access, mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.door != DoorTLS && !localName(r.Host) {
			hangUp(w)
			s.fail(w, r, fmt.Errorf("host %.*q: address the API by IP address or as localhost: %w", maxShown, r.Host, eboot.ErrDenied))
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" {
			u, err := url.Parse(origin)
			if err != nil || u.Host != r.Host {
				hangUp(w)
				s.fail(w, r, fmt.Errorf("origin %.*q: requests of other sites are refused: %w", maxShown, origin, eboot.ErrDenied))
				return
			}
		}
		// No route, or a redirect to one, which is no handler of ours.
		if h, pattern := mux.Handler(r); pattern == "" || !isRoute(h) {
			if _, err := a.let(r, eboot.RoleViewer); err != nil {
				s.turnedAway(w, r, err)
				return
			}
		}
		mux.ServeHTTP(&fallbackWriter{ResponseWriter: w, server: s, request: r}, r)
	})
}

func isRoute(h http.Handler) bool {
	_, ok := h.(http.HandlerFunc)
	return ok
}

func localName(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	if name == "localhost" || name == socketHost {
		return true
	}
	_, err = netip.ParseAddr(name)
	return err == nil
}

// fallbackWriter turns the mux's own plain-text 404 and 405 into the API's JSON.
type fallbackWriter struct {
	http.ResponseWriter
	server   *Server
	request  *http.Request
	replaced bool
}

func (f *fallbackWriter) WriteHeader(status int) {
	json := f.Header().Get("Content-Type") == "application/json"
	switch {
	case status == http.StatusNotFound && !json:
		f.replaced = true
		f.server.fail(f.ResponseWriter, f.request, fmt.Errorf("%s: no such resource: %w", asked(f.request), eboot.ErrNotFound))
	case status == http.StatusMethodNotAllowed && !json:
		f.replaced = true
		body := ErrorBody{Error: ErrorDetail{Code: codeMethodNotAllowed, Message: fmt.Sprintf("%s: allowed are %s", asked(f.request), f.Header().Get("Allow"))}}
		_ = writeJSON(f.ResponseWriter, status, body)
	default:
		f.ResponseWriter.WriteHeader(status)
	}
}

func (f *fallbackWriter) Write(p []byte) (int, error) {
	if f.replaced {
		return len(p), nil
	}
	return f.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach Flush.
func (f *fallbackWriter) Unwrap() http.ResponseWriter { return f.ResponseWriter }

type handlerFunc func(http.ResponseWriter, *http.Request) error

// handle answers a route for those that may, writes the error that its handler returns, and logs it.
func (s *Server) handle(a access, route route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if route.role != "" {
			known, err := a.let(r, route.role)
			if err != nil {
				s.turnedAway(w, r, err)
				return
			}
			r = known
			if r.Method != http.MethodGet {
				s.logger.Info("request", "by", caller(r).Actor, "request", asked(r), "request_id", legible(r.Header.Get(headerRequestID)))
			}
		} else {
			hangUp(w)
		}
		if err := route.handler(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	body, status := describe(err)
	log := s.logger.Debug
	if status == http.StatusInternalServerError {
		log = s.logger.Error
	}
	log("request failed", "request", asked(r), "code", body.Error.Code, "error", err)
	if err := writeJSON(w, status, body); err != nil {
		s.logger.Debug("reply not delivered", "request", asked(r), "error", err)
	}
}

// orEmpty keeps a list that is empty from being null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(data, '\n'))
	return err
}

// readJSON reads one JSON value and nothing behind it, without unknown fields.
func readJSON(r *http.Request, v any) error {
	d := json.NewDecoder(LimitValues(http.MaxBytesReader(nil, r.Body, maxBody), maxValues))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			return fmt.Errorf("request body: more than %d bytes: %w", maxBody, eboot.ErrTooLarge)
		case errors.Is(err, eboot.ErrInvalid), errors.Is(err, eboot.ErrTooLarge):
			return fmt.Errorf("request body: %w", err)
		}
		return fmt.Errorf("request body: %v: %w", err, eboot.ErrInvalid)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("request body: more than one JSON value: %w", eboot.ErrInvalid)
	}
	return nil
}

func readWrite(r *http.Request) (Write, error) {
	w := Write{RequestID: r.Header.Get(headerRequestID), By: caller(r).Actor}
	if w.RequestID == "" || len(w.RequestID) > 64 {
		return w, fmt.Errorf("header %s: want a unique id of up to 64 characters, so that the write can be repeated safely: %w", headerRequestID, eboot.ErrInvalid)
	}
	if text := r.Header.Get(headerExpectGeneration); text != "" {
		g, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return w, fmt.Errorf("header %s: %q is not a generation: %w", headerExpectGeneration, text, eboot.ErrInvalid)
		}
		w.ExpectGeneration = &g
	}
	return w, nil
}

func pathAddr(r *http.Request) (netip.Addr, error) { return eboot.ParseAddr(r.PathValue("slave")) }
func pathRef(r *http.Request) (eboot.Ref, error)   { return eboot.ParseRef(r.PathValue("bundle")) }

// queryFlag reads a query parameter that is absent, true or false.
func queryFlag(r *http.Request, name string) (bool, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("query %s=%q: want true or false: %w", name, text, eboot.ErrInvalid)
	}
	return v, nil
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, s.backend.Status())
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) error {
	readiness := s.backend.Readiness()
	return writeJSON(w, readyStatus(readiness), readiness)
}

func readyStatus(r eboot.Readiness) int {
	if r.Ready {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// readyz says whether, and not why not: anybody may ask.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) error {
	readiness := s.backend.Readiness()
	return writeJSON(w, readyStatus(readiness), map[string]bool{"ready": readiness.Ready})
}

// livez says whether, and not why not.
func (s *Server) livez(w http.ResponseWriter, _ *http.Request) error {
	if err := s.options.Live(); err != nil {
		s.logger.Debug("not alive", "error", err)
		return fmt.Errorf("this server must be restarted; its log says why: %w", eboot.ErrUnavailable)
	}
	return writeJSON(w, http.StatusOK, map[string]string{"status": "alive"})
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) error {
	s.options.Metrics.ServeHTTP(w, r)
	return nil
}
