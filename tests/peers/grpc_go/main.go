// The peer of `cargo xtask bench mesh`: a grpc-go server as people write one, with mTLS and a unary and a stream
// interceptor that verify an EdDSA JSON Web Token on every call.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"strings"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	issuer   = "tars-auth"
	audience = "tars"
)

// verifier checks the token of each call.
type verifier struct {
	key    ed25519.PublicKey
	parser *jwt.Parser
}

func newVerifier(text string) (*verifier, error) {
	key, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("the key is not the base64url of an Ed25519 public key")
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{"EdDSA"}),
		jwt.WithIssuer(issuer),
		jwt.WithAudience(audience),
		jwt.WithExpirationRequired(),
	)
	return &verifier{key: key, parser: parser}, nil
}

func (v *verifier) check(ctx context.Context) error {
	refused := status.Error(codes.Unauthenticated, "the call has no valid token")
	incoming, _ := metadata.FromIncomingContext(ctx)
	values := incoming.Get("authorization")
	if len(values) != 1 {
		return refused
	}
	text, found := strings.CutPrefix(values[0], "Bearer ")
	if !found {
		return refused
	}
	_, err := v.parser.Parse(text, func(*jwt.Token) (any, error) { return v.key, nil })
	if err != nil {
		return refused
	}
	return nil
}

func (v *verifier) unary(
	ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	if err := v.check(ctx); err != nil {
		return nil, err
	}
	return next(ctx, request)
}

func (v *verifier) stream(
	service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler,
) error {
	if err := v.check(stream.Context()); err != nil {
		return err
	}
	return next(service, stream)
}

// echo answers with a text in the first field of a message: GetTrainingSummaryResponse encodes its first field alike.
type echo struct {
	answer   *wrapperspb.StringValue
	messages int
}

func (e *echo) getTrainingSummary(
	service any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor,
) (any, error) {
	request := new(emptypb.Empty)
	if err := decode(request); err != nil {
		return nil, err
	}
	info := &grpc.UnaryServerInfo{Server: service, FullMethod: "/tars.orchestration.v1.TrainingMetricsService/GetTrainingSummary"}
	return interceptor(ctx, request, info, func(context.Context, any) (any, error) { return e.answer, nil })
}

func (e *echo) watch(_ any, stream grpc.ServerStream) error {
	if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
		return err
	}
	for range e.messages {
		if err := stream.SendMsg(e.answer); err != nil {
			return err
		}
	}
	return nil
}

func (e *echo) register(server *grpc.Server) {
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "tars.orchestration.v1.TrainingMetricsService",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "GetTrainingSummary", Handler: e.getTrainingSummary}},
	}, e)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "tars.orchestration.v1.TrainingService",
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "WatchTraining", Handler: e.watch, ServerStreams: true}},
	}, e)
}

func transport(cert, key, ca string) (credentials.TransportCredentials, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, errors.New("no root certificates")
	}
	return credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    roots,
		MinVersion:   tls.VersionTLS13,
	}), nil
}

func run() error {
	cert := flag.String("cert", "", "the server's certificate chain, a PEM file")
	key := flag.String("key", "", "the key of the certificate, a PEM file")
	ca := flag.String("ca", "", "the roots of clients, a PEM file")
	public := flag.String("token-key", "", "the Ed25519 key of tokens, base64url")
	answer := flag.String("answer", "", "the text that each answer holds")
	messages := flag.Int("messages", 1, "the messages of a stream")
	flag.Parse()

	checks, err := newVerifier(*public)
	if err != nil {
		return err
	}
	secure, err := transport(*cert, *key, *ca)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(
		grpc.Creds(secure),
		grpc.UnaryInterceptor(checks.unary),
		grpc.StreamInterceptor(checks.stream),
		grpc.MaxConcurrentStreams(1024),
	)
	(&echo{answer: wrapperspb.String(*answer), messages: *messages}).register(server)
	fmt.Println(listener.Addr())
	return server.Serve(listener)
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
