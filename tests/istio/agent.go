// Command agent stands in for the agent beside each of Istio's proxies, with Istio's own code where it
// matters: what fetches a module and what rewrites the extension configurations is istio.io/istio/pkg/wasm.
//
//	agent -pilot 127.0.0.1:15010 -image target/image/layout -cache DIR
//	agent -cluster
//
// It serves the images of an OCI layout as a local registry, passes xDS on between an Envoy and a
// pilot-discovery, serves the certificates that gateways name by file (SDS), and prints one line of
// JSON: where all that is. GET /fetch?url=…&sha256=… fetches as a proxy's agent would. With -cluster it is
// an empty Kubernetes cluster, and nothing else. Either ends with its standard input.
package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"

	"istio.io/istio/pkg/model"
	"istio.io/istio/pkg/security"
	"istio.io/istio/pkg/wasm"
)

// The name under which the layout's images are served, with their names there as tags.
const repository = "ws-clean-close"

func main() {
	pilot := flag.String("pilot", "", "address of pilot-discovery's plain gRPC port")
	image := flag.String("image", "", "folder of an OCI image layout")
	cache := flag.String("cache", "", "folder for fetched modules")
	empty := flag.Bool("cluster", false, "be an empty Kubernetes cluster")
	flag.Parse()
	if *empty {
		serve(map[string]string{"cluster": httptest.NewServer(emptyCluster()).URL})
		return
	}

	images := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	must(push(*image, strings.TrimPrefix(images.URL, "http://")))
	modules := wasm.NewLocalFileCache(*cache, wasm.Options{
		PurgeInterval:         time.Hour,
		ModuleExpiry:          time.Hour,
		HTTPRequestTimeout:    10 * time.Second,
		HTTPRequestMaxRetries: 1,
	})

	upstream, err := grpc.NewClient(*pilot, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	must(err)
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	server := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(server, &xds{pilot: upstream, modules: modules})
	secret.RegisterSecretDiscoveryServiceServer(server, sds{})
	go func() { must(server.Serve(socket)) }()

	fetch := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		path, err := modules.Get(query.Get("url"), wasm.GetOptions{
			Checksum:       query.Get("sha256"),
			ResourceName:   "test",
			RequestTimeout: 10 * time.Second,
			PullPolicy:     wasm.Always,
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		http.ServeFile(w, r, path)
	}))
	serve(map[string]string{
		"xds":      socket.Addr().String(),
		"registry": strings.TrimPrefix(images.URL, "http://"),
		"fetch":    fetch.URL + "/fetch",
	})
}

// serve says where, and waits for the end of whoever started it.
func serve(where map[string]string) {
	must(json.NewEncoder(os.Stdout).Encode(where))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// push puts the images of a layout into a registry.
func push(folder, address string) error {
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, entry := range manifest.Manifests {
		image, err := index.Image(entry.Digest)
		if err != nil {
			return err
		}
		tag := entry.Annotations["org.opencontainers.image.ref.name"]
		reference, err := name.NewTag(address+"/"+repository+":"+tag, name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(reference, image); err != nil {
			return err
		}
	}
	return nil
}

// xds passes the streams of Envoys on to pilot-discovery.
type xds struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	pilot   *grpc.ClientConn
	modules wasm.Cache
}

func (x *xds) StreamAggregatedResources(envoy discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(envoy.Context())
	defer cancel()
	pilot, err := discovery.NewAggregatedDiscoveryServiceClient(x.pilot).StreamAggregatedResources(ctx)
	if err != nil {
		return err
	}
	requests := make(chan *discovery.DiscoveryRequest, 100)
	go func() {
		defer cancel()
		for {
			request, err := envoy.Recv()
			if err != nil {
				return
			}
			requests <- request
		}
	}()
	go func() {
		for {
			select {
			case request := <-requests:
				if pilot.Send(request) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		response, err := pilot.Recv()
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		switch response.TypeUrl {
		case model.ExtensionConfigurationType:
			err = wasm.MaybeConvertWasmExtensionConfig(response.Resources, x.modules)
		case model.ListenerType:
			err = plainListeners(response.Resources)
		case model.ClusterType:
			err = plainClusters(response.Resources)
		}
		if err != nil {
			log.Printf("refused: %v", err)
			requests <- &discovery.DiscoveryRequest{
				TypeUrl:       response.TypeUrl,
				ResponseNonce: response.Nonce,
				ErrorDetail:   &status.Status{Code: int32(codes.Internal), Message: err.Error()},
			}
			continue
		}
		if err := envoy.Send(response); err != nil {
			return err
		}
	}
}

// plainListeners takes out of listeners what only Istio's own proxy has.
func plainListeners(resources []*anypb.Any) error {
	for _, resource := range resources {
		l := &listener.Listener{}
		if err := resource.UnmarshalTo(l); err != nil {
			return err
		}
		chains := l.FilterChains
		if l.DefaultFilterChain != nil {
			chains = append(chains, l.DefaultFilterChain)
		}
		for _, chain := range chains {
			chain.Filters = slices.DeleteFunc(chain.Filters, istioOnly)
			for _, filter := range chain.Filters {
				manager := &hcm.HttpConnectionManager{}
				if filter.GetTypedConfig().UnmarshalTo(manager) != nil {
					continue
				}
				manager.HttpFilters = slices.DeleteFunc(manager.HttpFilters, istioOnly)
				if err := filter.GetTypedConfig().MarshalFrom(manager); err != nil {
					return err
				}
			}
		}
		if err := resource.MarshalFrom(l); err != nil {
			return err
		}
	}
	return nil
}

// plainClusters does so with clusters.
func plainClusters(resources []*anypb.Any) error {
	for _, resource := range resources {
		c := &cluster.Cluster{}
		if err := resource.UnmarshalTo(c); err != nil {
			return err
		}
		c.Filters = slices.DeleteFunc(c.Filters, istioOnly)
		if err := resource.MarshalFrom(c); err != nil {
			return err
		}
	}
	return nil
}

func istioOnly[F interface {
	GetName() string
	GetTypedConfig() *anypb.Any
}](filter F) bool {
	config := filter.GetTypedConfig()
	wrapped := strings.HasSuffix(config.GetTypeUrl(), "TypedStruct")
	return strings.HasPrefix(filter.GetName(), "istio.") ||
		wrapped && bytes.Contains(config.GetValue(), []byte("/io.istio."))
}

// sds serves the certificates that a Gateway names by file.
type sds struct {
	secret.UnimplementedSecretDiscoveryServiceServer
}

func (sds) StreamSecrets(envoy secret.SecretDiscoveryService_StreamSecretsServer) error {
	for {
		request, err := envoy.Recv()
		if err != nil {
			return err
		}
		if request.ResponseNonce != "" {
			continue
		}
		response := &discovery.DiscoveryResponse{TypeUrl: request.TypeUrl, VersionInfo: "1", Nonce: "1"}
		for _, resource := range request.ResourceNames {
			if resource == security.WorkloadKeyCertResourceName || resource == security.RootCertReqResourceName {
				packed, err := anypb.New(ofTheMesh(resource))
				if err != nil {
					return err
				}
				response.Resources = append(response.Resources, packed)
				continue
			}
			files, ok := security.SdsCertificateConfigFromResourceName(resource)
			if !ok {
				continue
			}
			file := func(path string) *core.DataSource {
				return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: path}}
			}
			packed, err := anypb.New(&tls.Secret{
				Name: resource,
				Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
					CertificateChain: file(files.CertificatePath),
					PrivateKey:       file(files.PrivateKeyPath),
				}},
			})
			if err != nil {
				return err
			}
			response.Resources = append(response.Resources, packed)
		}
		if err := envoy.Send(response); err != nil {
			return err
		}
	}
}

// ofTheMesh is a certificate that nobody trusts, for what wants one of the mesh: a waypoint is not ready without.
func ofTheMesh(resource string) *tls.Secret {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	certificate := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	must(err)
	inline := func(kind string, bytes []byte) *core.DataSource {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes})
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: text}}
	}
	chain := inline("CERTIFICATE", certificate.Certificate[0])
	if resource == security.RootCertReqResourceName {
		context := &tls.CertificateValidationContext{TrustedCa: chain}
		return &tls.Secret{Name: resource, Type: &tls.Secret_ValidationContext{ValidationContext: context}}
	}
	return &tls.Secret{Name: resource, Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
		CertificateChain: chain,
		PrivateKey:       inline("PRIVATE KEY", key),
	}}}
}
