package agent

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
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

// warnOfReaders says that the key of gossip is no secret on this machine. (Of the certificate's
// key package identity says it.)
func (a *Agent) warnOfReaders() {
	path := a.config.Gossip.KeyFile
	if info, err := os.Stat(path); path != "" && err == nil && info.Mode().Perm()&0o007 != 0 {
		a.logger.Warn("everybody on this machine may read the key of gossip; chmod 0600 it", "gossip.key_file", path)
	}
}

// warnings are those about the secrets.
func (s *secrets) warnings() (w []string) {
	if s.credentials != nil {
		w = s.credentials.Warnings()
	}
	if p := s.keyProblem.Load(); p != nil {
		w = append(w, *p)
	}
	return w
}

const (
	secretsEvery = 5 * time.Second // between looks at the files when nobody connects
	remindEvery  = 24 * time.Hour
)

// followSecrets takes over files that have changed, and says what is wrong with them:
// at once, and every day as long as it is so.
func (a *Agent) followSecrets(ctx context.Context) error {
	ticker := time.NewTicker(secretsEvery)
	defer ticker.Stop()
	var said string
	var saidAt time.Time
	for {
		a.followGossipKeys()
		warnings := a.secrets.warnings()
		text := strings.Join(warnings, "\n")
		if now := a.now(); text != said || text != "" && now.Sub(saidAt) >= remindEvery {
			for _, w := range warnings {
				a.logger.Warn(w)
			}
			said, saidAt = text, now
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// followGossipKeys has gossip use what is in the file now. It is read whole each time: it
// is short, and a change of time stamp may be missed.
func (a *Agent) followGossipKeys() {
	if a.config.Gossip.KeyFile == "" {
		return
	}
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
