package peerrpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/api"
)

// Bounds of what a request may carry: anybody who reaches the peer port may send one.
const (
	maxEntry      = 1 << 20 // above what Raft takes
	maxTask       = 16 << 10
	maxCopy       = 1 << 20
	maxPins       = 65_536 // in one message
	maxPlans      = 64     // likewise
	maxPlanFiles  = 4096   // of one of them; a Fleet learns fewer
	maxBoots      = 4096   // in one message
	maxEvents     = 4096   // likewise
	maxListJSON   = 16 << 20
	maxValues     = 1 << 18 // in a message of boots or events; a boot with ten phases has some forty
	maxTaskValues = 1 << 14 // in a task: a copy names a few bundles, of some hundred each
	maxBootsJSON  = 4 << 20 // a boot may name phases, each of which takes more room than its text
	maxSnapshot   = 1 << 30

	plansAtOnce = 8 // the largest that a Fleet learns have 1.7 MB each, when all has to be escaped

	maxRequests = 64 // under way
	maxCopies   = 16 // of them those that wait for a bundle to be copied
)

// ServerOptions are what a Server needs.
type ServerOptions struct {
	Answerer Answerer
	Leader   Leader
	Logger   hclog.Logger
}

// Server answers other servers. Active: NewServer starts nothing.
type Server struct {
	answerer Answerer
	leader   Leader
	logger   hclog.Logger
	mux      *http.ServeMux
	requests chan struct{} // one in it for each request under way
	copies   chan struct{}
}

// NewServer returns a Server that does nothing until Serve.
func NewServer(o ServerOptions) *Server {
	s := &Server{
		answerer: o.Answerer, leader: o.Leader, logger: o.Logger, mux: http.NewServeMux(),
		requests: make(chan struct{}, maxRequests), copies: make(chan struct{}, maxCopies),
	}
	for pattern, h := range map[string]func(*http.Request) (any, error){
		"GET /v1/server":      func(*http.Request) (any, error) { return s.answerer.Info(), nil },
		"GET /v1/pins":        func(*http.Request) (any, error) { return s.answerer.Pins(), nil },
		"POST /v1/pins":       s.takePins,
		"POST /v1/plans":      s.takePlans,
		"POST /v1/boots":      s.takeBoots,
		"POST /v1/events":     s.takeEvents,
		"POST /v1/restart":    s.restart,
		"POST /v1/copies":     s.copyBundle,
		"POST /v1/read-index": func(r *http.Request) (any, error) { return s.leader.ReadIndex(r.Context()) },
		"POST /v1/transfer":   s.transfer,
		"POST /v1/remove":     s.remove,
		"POST /v1/restore":    s.restore,
	} {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := h(r)
			s.reply(w, r, answer, err)
		})
	}
	s.mux.HandleFunc("POST /v1/apply", s.apply)
	return s
}

// stopPatience is how long requests under way may take when the server stops.
const stopPatience = 2 * time.Second

// Serve answers on ln until ctx ends, then gives requests under way two seconds. It
// closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	bounded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := enter(s.requests); err != nil {
			s.reply(w, r, nil, err)
			return
		}
		defer leave(s.requests)
		s.mux.ServeHTTP(w, r)
	})
	return api.Serve(ctx, ln, bounded, stopPatience, s.logger)
}

func enter(room chan struct{}) error {
	select {
	case room <- struct{}{}:
		return nil
	default:
		return fmt.Errorf("%d requests of other servers are under way, which is the limit: %w", cap(room), eboot.ErrUnavailable)
	}
}

func leave(room chan struct{}) { <-room }

func (s *Server) reply(w http.ResponseWriter, r *http.Request, answer any, err error) {
	if err != nil {
		s.logger.Debug("request failed", "path", r.URL.Path, "error", err)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		answer = api.DescribeError(err)
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		s.logger.Debug("reply not delivered", "path", r.URL.Path, "error", err)
	}
}

func (s *Server) apply(w http.ResponseWriter, r *http.Request) {
	entry, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEntry))
	if err != nil {
		s.reply(w, r, nil, fmt.Errorf("apply: entry: %v: %w", err, eboot.ErrInvalid))
		return
	}
	result, err := s.leader.ApplyEntry(r.Context(), entry)
	if err != nil {
		s.reply(w, r, nil, err)
		return
	}
	if _, err := w.Write(result); err != nil {
		s.logger.Debug("reply not delivered", "path", r.URL.Path, "error", err)
	}
}

func readJSON[T any](r *http.Request, limit int64) (v T, err error) {
	if err := json.NewDecoder(api.LimitValues(http.MaxBytesReader(nil, r.Body, limit), maxTaskValues)).Decode(&v); errors.Is(err, eboot.ErrTooLarge) {
		return v, fmt.Errorf("body: %w", err)
	} else if err != nil {
		return v, fmt.Errorf("body: %v: %w", err, eboot.ErrInvalid)
	}
	return v, nil
}

// readList reads a JSON list of at most limit values: one value takes more room in memory
// than its shortest text, so the bytes alone are no bound.
func readList[T any](r io.Reader, noun string, limit int) ([]T, error) {
	wrong := func(err error) ([]T, error) { return nil, fmt.Errorf("%s: %v: %w", noun, err, eboot.ErrInvalid) }
	d := json.NewDecoder(r)
	if begin, err := d.Token(); err != nil || begin != json.Delim('[') {
		return wrong(fmt.Errorf("want a list: %v", err))
	}
	var values []T
	for d.More() {
		if len(values) == limit {
			return nil, fmt.Errorf("%s: more than %d: %w", noun, limit, eboot.ErrTooLarge)
		}
		var v T
		if err := d.Decode(&v); errors.Is(err, eboot.ErrTooLarge) {
			return nil, fmt.Errorf("%s: %w", noun, err)
		} else if err != nil {
			return wrong(err)
		}
		values = append(values, v)
	}
	if _, err := d.Token(); err != nil {
		return wrong(err)
	}
	return values, nil
}

// planMessage is an eboot.LearnedPlan with a bounded number of files.
type planMessage struct {
	eboot.PlanKey
	Files planFiles `json:"files"`
}

type planFiles []eboot.PlanFile

// UnmarshalJSON reads a list; null is none.
func (f *planFiles) UnmarshalJSON(text []byte) (err error) {
	*f, err = readList[eboot.PlanFile](bytes.NewReader(text), "files", maxPlanFiles)
	return err
}

func readPlans(r io.Reader) ([]eboot.LearnedPlan, error) {
	messages, err := readList[planMessage](r, "plans", maxPlans)
	plans := make([]eboot.LearnedPlan, len(messages))
	for i, m := range messages {
		plans[i] = eboot.LearnedPlan{PlanKey: m.PlanKey, Files: m.Files}
	}
	return plans, err
}

func (s *Server) takePins(r *http.Request) (any, error) {
	pins, err := readList[eboot.Pin](http.MaxBytesReader(nil, r.Body, maxListJSON), "pins", maxPins)
	if err == nil {
		s.answerer.TakePins(pins)
	}
	return struct{}{}, err
}

func (s *Server) takePlans(r *http.Request) (any, error) {
	plans, err := readPlans(http.MaxBytesReader(nil, r.Body, maxListJSON))
	if err == nil {
		s.answerer.TakePlans(plans)
	}
	return struct{}{}, err
}

func (s *Server) takeBoots(r *http.Request) (any, error) {
	boots, err := readList[eboot.Boot](api.LimitValues(http.MaxBytesReader(nil, r.Body, maxBootsJSON), maxValues), "boots", maxBoots)
	if err == nil {
		s.answerer.TakeBoots(boots)
	}
	return struct{}{}, err
}

func (s *Server) takeEvents(r *http.Request) (any, error) {
	events, err := readList[eboot.Event](api.LimitValues(http.MaxBytesReader(nil, r.Body, maxBootsJSON), maxValues), "events", maxEvents)
	if err == nil {
		s.answerer.TakeEvents(events)
	}
	return struct{}{}, err
}

func (s *Server) restart(r *http.Request) (any, error) {
	request, err := readJSON[RestartRequest](r, maxTask)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.answerer.RestartSlave(request)
}

func (s *Server) copyBundle(r *http.Request) (any, error) {
	request, err := readJSON[CopyRequest](r, maxCopy)
	if err != nil {
		return nil, err
	}
	if err := enter(s.copies); err != nil {
		return nil, err
	}
	defer leave(s.copies)
	return struct{}{}, s.answerer.CopyBundle(r.Context(), request)
}

type transferRequest struct {
	To string `json:"to"`
}

func (s *Server) transfer(r *http.Request) (any, error) {
	request, err := readJSON[transferRequest](r, maxTask)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.leader.TransferHere(r.Context(), request.To)
}

type removeRequest struct {
	ID      string    `json:"id"`
	Replace bool      `json:"replace"`
	Write   api.Write `json:"write"`
}

func (s *Server) remove(r *http.Request) (any, error) {
	request, err := readJSON[removeRequest](r, maxTask)
	if err != nil {
		return nil, err
	}
	return s.leader.RemoveHere(r.Context(), request.Write, request.ID, request.Replace)
}

func (s *Server) restore(r *http.Request) (any, error) {
	force, err := strconv.ParseBool(r.URL.Query().Get("force"))
	if err != nil {
		return nil, fmt.Errorf("restore: query force: %v: %w", err, eboot.ErrInvalid)
	}
	var by eboot.Actor
	if said := r.URL.Query()["by"]; len(said) == 3 {
		by = eboot.Actor{Name: said[0], Via: eboot.Via(said[1]), From: said[2]}
	}
	if err := by.Check(); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	return s.leader.RestoreHere(r.Context(), by, http.MaxBytesReader(nil, r.Body, maxSnapshot), force)
}
