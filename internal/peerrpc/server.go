package peerrpc

import (
	"context"
	"encoding/json"
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

const (
	maxEntry    = 1 << 20 // above what Raft takes
	maxJSON     = 64 << 20
	maxSnapshot = 1 << 30
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
}

// NewServer returns a Server that does nothing until Serve.
func NewServer(o ServerOptions) *Server {
	s := &Server{answerer: o.Answerer, leader: o.Leader, logger: o.Logger, mux: http.NewServeMux()}
	for pattern, h := range map[string]func(*http.Request) (any, error){
		"GET /v1/server":      func(*http.Request) (any, error) { return s.answerer.Info(), nil },
		"GET /v1/pins":        func(*http.Request) (any, error) { return s.answerer.Pins(), nil },
		"POST /v1/pins":       s.takePins,
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
	return api.Serve(ctx, ln, s.mux, stopPatience, s.logger)
}

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

func readJSON[T any](r *http.Request) (v T, err error) {
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxJSON)).Decode(&v); err != nil {
		return v, fmt.Errorf("body: %v: %w", err, eboot.ErrInvalid)
	}
	return v, nil
}

func (s *Server) takePins(r *http.Request) (any, error) {
	pins, err := readJSON[[]eboot.Pin](r)
	if err == nil {
		s.answerer.TakePins(pins)
	}
	return struct{}{}, err
}

func (s *Server) copyBundle(r *http.Request) (any, error) {
	request, err := readJSON[CopyRequest](r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.answerer.CopyBundle(r.Context(), request)
}

type transferRequest struct {
	To string `json:"to"`
}

func (s *Server) transfer(r *http.Request) (any, error) {
	request, err := readJSON[transferRequest](r)
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
	request, err := readJSON[removeRequest](r)
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
	return s.leader.RestoreHere(r.Context(), http.MaxBytesReader(nil, r.Body, maxSnapshot), force)
}
