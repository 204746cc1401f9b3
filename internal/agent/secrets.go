package agent

import (
	"bytes"
	"context"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"eboot/internal/identity"
	"eboot/internal/peerport"
)

// secrets are the files by which servers know each other. They may change at any time.
type secrets struct {
	credentials *identity.Credentials  // nil: tls.insecure, or alone
	keys        [][]byte               // of gossip; followSecrets only, once it runs
	keyProblem  atomic.Pointer[string] // why the gossip key file is not followed; nil: it is
	keyExposed  atomic.Bool            // everybody on this machine may read the gossip key file
}

func (a *Agent) openCredentials() (err error) {
	c := a.config.TLS
	if !c.Set() {
		return nil
	}
	a.secrets.credentials, err = identity.Open(identity.Options{
		Cluster: a.config.Cluster.Name, CA: c.CA, Cert: c.Cert, Key: c.Key, Now: a.now, Logger: a.logger.Named("tls"),
	})
	return err
}

// peerCredentials are nil, and not an interface that holds nil, when there are none.
func (a *Agent) peerCredentials() peerport.Credentials {
	if a.secrets.credentials == nil {
		return nil
	}
	return a.secrets.credentials
}

// certificateExpires is zero when there is no certificate.
func (a *Agent) certificateExpires() time.Time {
	if a.secrets.credentials == nil {
		return time.Time{}
	}
	return a.secrets.credentials.Expires().UTC()
}

// warnings are those about the secrets.
func (s *secrets) warnings() (w []string) {
	if s.credentials != nil {
		w = s.credentials.Warnings()
	}
	if p := s.keyProblem.Load(); p != nil {
		w = append(w, *p)
	}
	if s.keyExposed.Load() {
		w = append(w, "everybody on this machine may read the key of gossip (gossip.key_file); chmod 0600 it")
	}
	return w
}

const (
	secretsEvery = 5 * time.Second // between looks at the files when nobody connects
	remindEvery  = 24 * time.Hour
)

// followSecrets takes over files that have changed, and says what is wrong with them, or that
// there are none: at once, and every day as long as it is so.
func (a *Agent) followSecrets(ctx context.Context) error {
	ticker := time.NewTicker(secretsEvery)
	defer ticker.Stop()
	var r reminder
	for {
		a.followGossipKeys()
		for _, w := range r.due(append(a.config.Warnings(), a.secrets.warnings()...), a.now()) {
			a.logger.Warn(w)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// reminder says of which warnings the log is to have a line.
type reminder struct{ said map[string]time.Time }

// due returns those that are new, and those that were said a day ago.
func (r *reminder) due(warnings []string, now time.Time) (due []string) {
	said := map[string]time.Time{}
	for _, w := range warnings {
		at, known := r.said[w]
		if since := now.Sub(at); !known || since >= remindEvery || since < 0 { // a clock that was set back
			due, at = append(due, w), now
		}
		said[w] = at
	}
	r.said = said
	return due
}

// followGossipKeys has gossip use what is in the file now. It is read whole each time: it
// is short, and a change of time stamp may be missed.
func (a *Agent) followGossipKeys() {
	if a.config.Gossip.KeyFile == "" {
		return
	}
	info, err := os.Stat(a.config.Gossip.KeyFile)
	a.secrets.keyExposed.Store(err == nil && info.Mode().Perm()&0o007 != 0)
	keys, err := a.config.Gossip.Keys()
	if err == nil && !slices.EqualFunc(keys, a.secrets.keys, bytes.Equal) {
		if err = a.peers.gossip.SetKeys(keys); err == nil {
			a.secrets.keys = keys
			a.logger.Info("gossip keys have changed", "keys", len(keys))
		}
	}
	if err != nil {
		problem := "the gossip keys stay as they were: " + err.Error()
		a.secrets.keyProblem.Store(&problem)
		return
	}
	a.secrets.keyProblem.Store(nil)
}
